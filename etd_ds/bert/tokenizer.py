"""The student's tokenizer: its teacher's, without the teacher's habits of cutting and padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from etd_ds.contract import errors
from etd_ds.contract.shape import EncoderShape

# What may stand in tokenizer_config.json; anything else (code to load, other people's paths) is left behind.
_KEPT = (
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def write(folder: Path, *, source: Path, shape: EncoderShape) -> None:
    """Write `tokenizer.json`, `vocab.txt` and `tokenizer_config.json` for a student. Raises `TeacherError`."""
    config = _config(source)
    tokenizer = _read(source, config)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if max(vocabulary.values()) >= shape.vocab:
        got = max(vocabulary.values())
        raise errors.TeacherError(
            f"teacher: its tokenizer gives ids up to {got}, its vocabulary ends at {shape.vocab - 1}"
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    by_id = {number: token for token, number in vocabulary.items()}
    lines = [by_id.get(number, f"[unused-id-{number}]") for number in range(max(by_id) + 1)]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    kept = {key: config[key] for key in _KEPT if isinstance(config.get(key), (str, bool, type(None))) and key in config}
    written = {"tokenizer_class": "BertTokenizer", "model_max_length": shape.positions} | kept
    (folder / "tokenizer_config.json").write_text(json.dumps(written, indent=2) + "\n")


def _config(source: Path) -> dict[str, Any]:
    try:
        config = json.loads((source / "tokenizer_config.json").read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise errors.TeacherError(f"teacher: its tokenizer_config.json is not JSON ({error})") from None
    return config if isinstance(config, dict) else {}


def _read(source: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    try:
        if (source / "tokenizer.json").is_file():
            return tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
        if (source / "vocab.txt").is_file():
            lowercase = config.get("do_lower_case", True) is True
            wordpiece = tokenizers.BertWordPieceTokenizer(str(source / "vocab.txt"), lowercase=lowercase)
            return tokenizers.Tokenizer.from_str(wordpiece.to_str())
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise errors.TeacherError(f"teacher: its tokenizer cannot be read ({error})") from None
    raise errors.TeacherError("teacher: wanted a tokenizer.json or a vocab.txt beside its weights, found neither")
