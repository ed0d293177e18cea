"""BERT checkpoints on disk: stock Hugging Face folders with safetensors, read strictly and written whole."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import tokenizers
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from etd_ds.bert import hub, tokenizer
from etd_ds.contract import errors, rundir, shape, teachers
from etd_ds.extract import axes

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Numbers beside the shape that a student takes over from its teacher. Anything else in a config.json is not obeyed.
_INHERITED = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
# Without parameters of their own, and differentiable.
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")
_JSON_BYTES = 16 << 20
_LEGACY = {".gamma": ".weight", ".beta": ".bias"}
# Stored by older versions: a constant, and the decoder, which is the word embedding and the bias again.
_REDUNDANT = ("embeddings.position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias")


@dataclass(frozen=True)
class Teacher:
    """A checkpoint that was found and looks right; its weights are not read yet."""

    reference: str
    """As asked, with the commit when it comes from a hub."""
    folder: Path
    shape: shape.EncoderShape
    sha256: str
    """Of the weights file; of several shards, the hash of their hashes."""


@dataclass(frozen=True)
class Weights:
    """Parameters by the names of stock `BertModel` (no `bert.` prefix), heads under `cls.`."""

    state: dict[str, Tensor]
    parts: frozenset[axes.Part]
    ignored: tuple[str, ...]
    """Tensors that stand in the file and belong to no part that we know."""

    @property
    def architecture(self) -> str:
        """The stock class that has just these parts."""
        return (
            "BertForPreTraining" if "nsp" in self.parts else "BertForMaskedLM" if "mlm" in self.parts else "BertModel"
        )


# ---------------------------------------------------------------- finding


def shape_of(reference: str, cache: Path) -> shape.EncoderShape:
    """The teacher's shape from its config alone; also makes sure that it has safetensors. Raises `TeacherError`."""
    return _shape_at(_locate(reference), cache)


def resolve(reference: str, cache: Path) -> Teacher:
    """Find a teacher (hub ids are downloaded into `cache/hub`) and hash its weights. Raises `TeacherError`."""
    where = _locate(reference)
    found = _shape_at(where, cache)  # a repository that is no BERT is refused before its weights are downloaded
    folder, name = where, reference
    if isinstance(where, teachers.Hub):
        folder, name = hub.fetch(where, cache, weights=True), f"{where.repo}@{where.commit}"
    assert isinstance(folder, Path)
    digests = [_sha256(path, path.stat().st_mtime_ns, path.stat().st_size) for path in _weight_files(folder)]
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return Teacher(name, folder, found, whole)


def _locate(reference: str) -> Path | teachers.Hub:
    where = teachers.locate(reference)
    return hub.pin(where) if isinstance(where, teachers.Hub) else where


def _shape_at(where: Path | teachers.Hub, cache: Path) -> shape.EncoderShape:
    if isinstance(where, Path):
        _weight_files(where)
        return shape.from_config(read_config(where))
    folder = hub.fetch(where, cache, weights=False)
    found = shape.from_config(read_config(folder))
    if not hub.has_weights(folder) and not hub.has_safetensors(where):
        raise _no_safetensors(where.repo)
    return found


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    return rundir.digest(path).sha256


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder as plain data, checked for what we cannot do. Raises `TeacherError`."""
    if not (folder / "config.json").is_file():
        raise errors.TeacherError("teacher: wanted a Hugging Face folder, it has no config.json")
    config = _json(folder / "config.json")
    if not isinstance(config, dict):
        raise errors.TeacherError("teacher: its config.json is not a JSON object")
    shape.from_config(config)
    for key, default in _INHERITED.items():
        value = config.get(key, default)
        if type(default) is float:
            good = type(value) in (int, float) and 0 <= value < 1
        elif type(default) is int:
            good = value is None or (type(value) is int and 0 <= value < config["vocab_size"])
        else:
            good = value in _ACTIVATIONS
        if not good:
            raise errors.TeacherError(f"teacher: its config.json has {key} = {value!r}, which BERT cannot have")
    if config.get("tie_word_embeddings", True) is not True:
        raise errors.TeacherError("teacher: its MLM decoder is not tied to the word embeddings, which is not supported")
    return config


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise ValueError("it is too large")
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise errors.TeacherError(f"teacher: its {path.name} is not JSON that we can read ({error})") from None


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder; names in an index must be plain names in the same folder."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        raise _no_safetensors(folder.name)
    try:
        names = sorted(set(_json(index)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise errors.TeacherError(f"teacher: its {INDEX} is damaged ({error})") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise errors.TeacherError(
                f"teacher: its {INDEX} names {name!r}, wanted plain *.safetensors names in the same folder", got=name
            )
        if not (folder / name).is_file():
            raise errors.TeacherError(f"teacher: its {INDEX} names {name}, which is missing", got=name)
    if not names:
        raise errors.TeacherError(f"teacher: its {INDEX} names no file")
    return [folder / name for name in names]


def _no_safetensors(name: str) -> errors.TeacherError:
    return errors.TeacherError(
        f"teacher: {name} has no {WEIGHTS}; pickled weights (*.bin) are never read, convert them to safetensors",
        wanted=WEIGHTS,
        got=name,
    )


# ---------------------------------------------------------------- reading


def read_weights(folder: Path) -> Weights:
    """Every parameter of a checkpoint, names made canonical, shapes and values checked. Raises `TeacherError`."""
    wanted = shape.from_config(read_config(folder))
    found: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            tensors = safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise errors.TeacherError(f"teacher: {path.name} is corrupt or truncated ({error})") from None
        for stored, tensor in tensors.items():
            name = _canonical(stored)
            if name in found:
                raise errors.TeacherError(f"teacher: {path.name} holds {name} twice")
            found[name] = tensor
    return _checked(found, wanted)


def _canonical(name: str) -> str:
    name = name.removeprefix("bert.")
    for old, new in _LEGACY.items():
        if name.endswith("LayerNorm" + old):
            name = name.removesuffix(old) + new
    return name


def _checked(found: dict[str, Tensor], wanted: shape.EncoderShape) -> Weights:
    if "cls.predictions.decoder.bias" in found:
        found.setdefault("cls.predictions.bias", found["cls.predictions.decoder.bias"])
    parts = frozenset(part for part, rows in axes.HEADS.items() if rows.keys() & found.keys())
    # Stock classes know three combinations; what stands beside them is left out and named in the manifest.
    if not {"mlm", "pooler"} <= parts:
        parts -= {"nsp"}
    if "mlm" in parts and "nsp" not in parts:
        parts -= {"pooler"}
    length = axes.sizes(wanted)
    state: dict[str, Tensor] = {}
    for name, names in axes.table(wanted.layers, parts):
        size = tuple(length[axis] for axis in names)
        if name not in found:
            raise errors.TeacherError(f"teacher: its weights lack {name}, which a BERT {wanted} has", wanted=name)
        tensor = found.pop(name)
        if tuple(tensor.shape) != size or not tensor.is_floating_point():
            got = f"{list(tensor.shape)} of {tensor.dtype}"
            raise errors.TeacherError(f"teacher: {name} is {got}, its config.json asks for floats {list(size)}")
        # A sum is finite only if every value is (five times faster to ask); one that overflowed is looked into.
        if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
            raise errors.TeacherError(f"teacher: {name} holds NaN or infinite values")
        state[name] = tensor
    for name in _REDUNDANT:
        found.pop(name, None)
    for name in found:
        if name.startswith(("embeddings.", "encoder.")):
            raise errors.TeacherError(f"teacher: its weights hold {name}, which a BERT {wanted} has not", got=name)
    return Weights(state, parts, tuple(sorted(found)))


def load_encoder(folder: Path, *, dtype: torch.dtype = torch.float32) -> BertModel:
    """The encoder of a checkpoint as stock `BertModel` without pooler, SDPA attention, eval mode.

    For teachers, for `init/` and for `student/`. Strict: every encoder parameter comes from the file.
    """
    return build_encoder(read_config(folder), read_weights(folder).state, dtype=dtype)


def build_encoder(config: Mapping[str, Any], state: Mapping[str, Tensor], *, dtype: torch.dtype) -> BertModel:
    """Stock `BertModel` around given parameters; nothing is initialised twice."""
    bert_config = BertConfig(**student_config(config, shape.from_config(config)))
    # A checkpoint may ask for another attention kernel; we never obey it.
    bert_config._attn_implementation = "sdpa"
    with torch.device("meta"):
        bert: BertModel = BertModel(bert_config, add_pooling_layer=False)
    names = dict(axes.table(bert_config.num_hidden_layers, frozenset()))
    bert.load_state_dict({name: state[name].to(dtype) for name in names}, strict=True, assign=True)
    # The two constant buffers of BertEmbeddings, which no checkpoint holds.
    positions_1S = torch.arange(bert_config.max_position_embeddings)[None]
    bert.embeddings.register_buffer("position_ids", positions_1S, persistent=False)
    bert.embeddings.register_buffer("token_type_ids", torch.zeros_like(positions_1S), persistent=False)
    bert.train(False)
    return bert


# ---------------------------------------------------------------- writing


def student_config(teacher: Mapping[str, Any], student: shape.EncoderShape) -> dict[str, Any]:
    """The plain numbers of a `config.json`: the student's shape and what it inherits."""
    numbers = {
        "num_hidden_layers": student.layers,
        "hidden_size": student.hidden,
        "num_attention_heads": student.heads,
        "intermediate_size": student.ffn,
        "vocab_size": student.vocab,
        "max_position_embeddings": student.positions,
        "type_vocab_size": student.token_types,
    }
    return numbers | {key: teacher.get(key, default) for key, default in _INHERITED.items()}


def write(
    folder: Path,
    *,
    teacher: Path,
    tokens: tokenizers.Tokenizer,
    student: shape.EncoderShape,
    weights: Weights,
    manifest: dict[str, Any],
    card: str,
) -> None:
    """Fill an existing empty folder with a stock Hugging Face model: `rundir.STUDENT_FILES`."""
    config = {"architectures": [weights.architecture], "model_type": "bert", "dtype": "float32"}
    config |= student_config(read_config(teacher), student)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.write(folder, tokens, teacher=teacher, shape=student)
    _write_weights(folder / WEIGHTS, weights)
    (folder / "extraction.json").write_text(json.dumps(manifest) + "\n")
    (folder / "README.md").write_text(card, encoding="utf-8")


def save_student(folder: Path, *, init: Path, encoder: Mapping[str, Tensor], card: str | None = None) -> None:
    """Fill an existing empty folder with `init`'s files, its encoder replaced by trained parameters.

    `encoder` maps names of `BertModel.state_dict()` to tensors. What it lacks stays as extracted, and so do heads; a
    decoder stays tied.
    """
    weights = read_weights(init)
    for name, axis_names in axes.table(shape.from_config(read_config(init)).layers, frozenset()):
        if name in encoder:
            assert encoder[name].dim() == len(axis_names), name
            weights.state[name] = encoder[name]
    for name in rundir.STUDENT_FILES:
        if name != WEIGHTS:
            shutil.copyfile(init / name, folder / name)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    _write_weights(folder / WEIGHTS, weights)


def _write_weights(path: Path, weights: Weights) -> None:
    prefix = "" if weights.architecture == "BertModel" else "bert."
    stored = {
        (name if name.startswith("cls.") else prefix + name): tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in weights.state.items()
    }
    try:
        safetensors.torch.save_file(stored, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise OSError(f"{path.name} cannot be written: {error}") from None
