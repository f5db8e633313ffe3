"""A byte-level BPE learned from one's own text, by the library `tokenizers`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable

from gpt2c.errors import UserError
from gpt2c.tokenizer.bpe import MOST_IDS, BytePairTokenizer, unspell

FEWEST_IDS = 257  # the bytes and the end of a text
# Bytes of a stretch without a break (a word, a line of blanks, a sequence of bases) that are learned from in one piece.
# The library looks at a whole stretch for each pair that it merges there: 1 MB of `acgt` took more than 200 s, and now
# 4 s. Shakespeare's 4,096 ids are the same.
LONGEST = 256


def learn(texts: Iterable[str], vocab_size: int, name: str) -> BytePairTokenizer:
    """The tokenizer of at most `vocab_size` ids, fewer where the texts have no more pairs to merge; the same for the
    same texts. A stretch without a break is cut into pieces of LONGEST bytes. UserError for a size that is not
    possible, or where the library is missing."""
    if not FEWEST_IDS <= vocab_size <= MOST_IDS:
        raise UserError(f"--vocab-size is {vocab_size}, expected {FEWEST_IDS} to {MOST_IDS}")
    try:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    except ImportError as error:
        raise UserError('training a tokenizer needs the package tokenizers: pip install "gpt2c[tokenizers]"') from error
    learner = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(f".{{{LONGEST}}}"), "isolated")
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False), cut])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # the end of a text comes last
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    _interruptible(lambda: learner.train_from_iterator(texts, trainer))
    vocab: dict[str, int] = learner.get_vocab()
    return BytePairTokenizer(name, [unspell(token) for token in sorted(vocab, key=vocab.__getitem__)])


def _interruptible(work: Callable[[], None]) -> None:
    """Does the work, which Python's signals do not reach, in a thread, so that Ctrl-C ends the wait for it."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # whatever it is, it belongs to the caller
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
