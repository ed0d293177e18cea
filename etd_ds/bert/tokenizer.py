"""The student's tokenizer files: its teacher's tokenizer, without the teacher's habits of cutting and padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from etd_ds.contract import errors
from etd_ds.contract.shape import EncoderShape

# What a student takes over from tokenizer_config.json; anything else (code to load, people's paths) is left behind.
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


def write(folder: Path, tokenizer: tokenizers.Tokenizer, *, teacher: Path, shape: EncoderShape) -> None:
    """Write `tokenizer.json`, `vocab.txt` and `tokenizer_config.json`. `tokenizer` neither cuts nor pads."""
    assert tokenizer.truncation is None
    assert tokenizer.padding is None
    tokenizer.save(str(folder / "tokenizer.json"))
    by_id = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    lines = [by_id.get(number, f"[unused-id-{number}]") for number in range(max(by_id) + 1)]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = _settings(teacher)
    kept = {key: settings[key] for key in _KEPT if isinstance(settings.get(key, 0), (str, bool, type(None)))}
    written = {"tokenizer_class": "BertTokenizer", "model_max_length": shape.positions} | kept
    (folder / "tokenizer_config.json").write_text(json.dumps(written, indent=2) + "\n")


def _settings(teacher: Path) -> dict[str, Any]:
    try:
        settings = json.loads((teacher / "tokenizer_config.json").read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise errors.TeacherError(f"teacher: its tokenizer_config.json is not JSON ({error})") from None
    return settings if isinstance(settings, dict) else {}
