"""Encoder shapes, and the one rule of which student fits into which teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from etd_ds.contract import errors, spec


class EncoderShape(BaseModel):
    """The numbers that define a BERT encoder. Head size is hidden / heads, as in stock `BertConfig`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int
    hidden: int
    heads: int
    ffn: int
    vocab: int = 30522
    positions: int = 512
    token_types: int = 2

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    def __str__(self) -> str:
        return f"{self.layers}L-{self.hidden} ({self.heads} heads, FFN {self.ffn})"


BERT_BASE = EncoderShape(layers=12, hidden=768, heads=12, ffn=3072)

_CONFIG_KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "vocab": "vocab_size",
    "positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
}


def from_config(config: Mapping[str, Any]) -> EncoderShape:
    """Shape of a Hugging Face `config.json`, without torch. Raises `TeacherError` if it is no plain BERT encoder."""
    kind = config.get("model_type")
    if kind != "bert":
        raise errors.TeacherError(
            f"teacher: wanted a checkpoint whose config.json says model_type 'bert', got {kind!r}",
            wanted="bert",
            got=kind,
        )
    if "auto_map" in config:
        raise errors.TeacherError("teacher: its config.json asks for remote code (auto_map), which is never run")
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        if config.get(key) not in (None, "eager", "sdpa"):
            raise errors.TeacherError(f"teacher: its config.json asks for the attention kernel {config[key]!r}")
    for key, wanted in (("position_embedding_type", "absolute"), ("is_decoder", False), ("add_cross_attention", False)):
        if (got := config.get(key, wanted)) != wanted:
            raise errors.TeacherError(f"teacher: config.json has {key} = {got!r}, only {wanted!r} is supported")
    numbers = {}
    for name, key in _CONFIG_KEYS.items():
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise errors.TeacherError(f"teacher: config.json has {key} = {value!r}, wanted a positive integer")
        numbers[name] = value
    shape = EncoderShape(**numbers)
    if shape.hidden % shape.heads:
        raise errors.TeacherError(f"teacher: hidden size {shape.hidden} is not divisible by its {shape.heads} heads")
    return shape


def student(job: spec.JobSpec, teacher: EncoderShape) -> EncoderShape:
    """The student's shape, or a `ShapeError` that names the field and the allowed values. Costs nothing."""

    def refuse(field: str, got: int | str, wanted: str) -> errors.ShapeError:
        return errors.ShapeError(
            f"{field}: wanted {wanted}, got {got} (teacher is {teacher})", field=field, wanted=wanted, got=got
        )

    if job.layers > teacher.layers:
        raise refuse("layers", job.layers, f"1 to {teacher.layers}")
    if job.hidden > teacher.hidden or job.hidden % teacher.heads:
        raise refuse(
            "hidden", job.hidden, f"a multiple of {teacher.heads} heads, from {teacher.heads} to {teacher.hidden}"
        )
    ffn = 4 * job.hidden if job.ffn is None else job.ffn
    if ffn > teacher.ffn:
        default = " (the default is 4 × hidden)" if job.ffn is None else ""
        raise refuse("ffn", ffn, f"1 to {teacher.ffn}{default}")
    if job.seq_length > teacher.positions:
        raise refuse("seq_length", job.seq_length, f"8 to {teacher.positions}")
    if job.layout == "pairs" and teacher.token_types < 2:
        raise refuse("layout", job.layout, "'packed' for a teacher without a second token type")
    if not isinstance(job.layer_selection, str) and max(job.layer_selection) > teacher.layers:
        raise refuse("layer_selection", max(job.layer_selection), f"teacher layers from 1 to {teacher.layers}")
    if job.objective == "tinybert" and teacher.layers % job.layers:
        raise refuse("layers", job.layers, f"a divisor of {teacher.layers} (objective 'tinybert' maps layers evenly)")
    return teacher.model_copy(update={"layers": job.layers, "hidden": job.hidden, "ffn": ffn})


def teacher_layers(job: spec.JobSpec, teacher: EncoderShape) -> tuple[int, ...]:
    """1-based teacher layer of each student layer [ETD §3.2]: uniform is (2·m·N + M) div (2·M).

    None of them for `measured`: only extraction will know.
    """
    N, M = teacher.layers, job.layers
    match job.layer_selection:
        case "uniform":
            return tuple((2 * m * N + M) // (2 * M) for m in range(1, M + 1))
        case "top":
            return tuple(range(N - M + 1, N + 1))
        case "bottom":
            return tuple(range(1, M + 1))
        case "measured":
            return ()
        case chosen:
            assert not isinstance(chosen, str)
            return chosen
