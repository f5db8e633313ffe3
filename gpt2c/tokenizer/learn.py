"""A byte-level BPE learned from one's own text, by the library `tokenizers`."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from gpt2c.errors import UserError
from gpt2c.tokenizer.bpe import MOST_IDS, BytePairTokenizer, unspell

FEWEST_IDS = 257  # the bytes and the end of a text


def learn(texts: Iterable[str], vocab_size: int, name: str) -> BytePairTokenizer:
    """The tokenizer of at most `vocab_size` ids, fewer where the texts have no more pairs to merge; the same for the
    same texts. UserError for a size that is not possible, or where the library is missing."""
    if not FEWEST_IDS <= vocab_size <= MOST_IDS:
        raise UserError(f"--vocab-size is {vocab_size}, expected {FEWEST_IDS} to {MOST_IDS}")
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError as error:
        raise UserError('training a tokenizer needs the package tokenizers: pip install "gpt2c[tokenizers]"') from error
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # the end of a text comes last
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    learner.train_from_iterator(texts, trainer)
    vocab: dict[str, int] = learner.get_vocab()
    return BytePairTokenizer(name, [unspell(token) for token in sorted(vocab, key=vocab.__getitem__)])
