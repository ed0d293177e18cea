"""The teacher's own tokenizer, opened without the truncation and padding that its file may bake in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from etd_ds.contract import errors

_SPECIAL = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]", "unk": "[UNK]"}


@dataclass(frozen=True)
class Special:
    """Ids of the tokens that BERT's input format is made of; `vocab` is one more than the largest id."""

    cls: int
    sep: int
    pad: int
    mask: int
    unk: int
    vocab: int

    @property
    def dtype(self) -> np.dtype:
        """The smallest type that tokens are stored in."""
        return np.dtype("<u2" if self.vocab <= 1 << 16 else "<u4")

    @property
    def ids(self) -> frozenset[int]:
        return frozenset((self.cls, self.sep, self.pad, self.mask, self.unk))


def open_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """Tokenizer of a Hugging Face folder, never truncating, never padding. Raises `TeacherError`.

    Special tokens are found in the input format only: a text that spells out `[SEP]` gets ordinary tokens.
    """
    if (file := folder / "tokenizer.json").is_file():
        tokenizer = open_file(file)
    elif (file := folder / "vocab.txt").is_file():
        tokenizer = _plain(_from_vocabulary(file))
    else:
        raise errors.TeacherError("teacher: wanted a tokenizer.json or a vocab.txt beside the weights, got neither")
    _check(tokenizer, folder)
    return tokenizer


def open_file(path: Path) -> tokenizers.Tokenizer:
    """The same from a tokenizer.json alone. Raises `TeacherError`."""
    try:
        return _plain(tokenizers.Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises bare `Exception` for a file that it cannot read
        raise errors.TeacherError(f"teacher: its tokenizer.json cannot be read: {error}") from None


def special(tokenizer: tokenizers.Tokenizer) -> Special:
    """The ids of [CLS], [SEP], [PAD], [MASK] and [UNK]. Raises `TeacherError` if one is missing."""
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    ids = {name: tokenizer.token_to_id(token) for name, token in _SPECIAL.items()}
    if missing := [_SPECIAL[name] for name, found in ids.items() if found is None]:
        raise errors.TeacherError(f"teacher: its vocabulary lacks {', '.join(missing)}", wanted=list(_SPECIAL.values()))
    return Special(**{name: int(found) for name, found in ids.items() if found is not None}, vocab=largest + 1)


def digest(tokenizer: tokenizers.Tokenizer) -> str:
    """sha256 of everything that decides how text becomes ids; the same for a re-saved copy."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def _plain(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _from_vocabulary(file: Path) -> tokenizers.Tokenizer:
    # The older BERT layout: a word list, and whether to lower it in tokenizer_config.json.
    # Only a line feed ends a word: several characters at which Unicode ends a line are words of real vocabularies.
    words = _content(file).rstrip("\n").split("\n")
    options = file.with_name("tokenizer_config.json")
    settings = _json(options) if options.is_file() else {}
    lower = bool(settings.get("do_lower_case", True))
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lower,
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([token for token in _SPECIAL.values() if token in words])
    ids = special(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids.cls), ("[SEP]", ids.sep)],
    )
    return tokenizer


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise errors.TeacherError(f"teacher: wanted its {file.name} in UTF-8, got other bytes: {error}") from None


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(_content(file))
    except (ValueError, RecursionError) as error:
        raise errors.TeacherError(f"teacher: its {file.name} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise errors.TeacherError(f"teacher: wanted a JSON object in its {file.name}, got {type(content).__name__}")
    return content


def _check(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    vocab = special(tokenizer).vocab
    config = folder / "config.json"
    if not config.is_file():
        return
    wanted = _json(config).get("vocab_size")
    if isinstance(wanted, int) and vocab > wanted:
        raise errors.TeacherError(
            f"teacher: its tokenizer has ids up to {vocab - 1}, but config.json says vocab_size {wanted}; "
            "take tokenizer and weights from the same checkpoint",
            wanted=wanted,
            got=vocab,
        )
