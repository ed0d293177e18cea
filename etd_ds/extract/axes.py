"""The table of a BERT's parameters: name -> named axes. Shapes, strict reading, cutting and counting all follow it.

The project's shape legend: B batch, S sequence, T packed tokens, H hidden, N heads, D head size, C context (N·D),
F feed-forward, V vocabulary, P positions, K token types, L layers. Hidden axes carry the module they belong to,
because without hidden consistency [ETD §3.1] each module keeps its own dimensions:

    He  what the embeddings give, and what the tied MLM decoder takes
    Ha  one layer's attention: its input, its output and LayerNorm
    Hf  one layer's feed-forward: its input, its output and LayerNorm
    Ht  what leaves the last layer: pooler, NSP, input of the MLM transform
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from etd_ds.contract.shape import EncoderShape

Axes = tuple[str, ...]
Part = Literal["encoder", "pooler", "mlm", "nsp"]

LAYER = "encoder.layer."

EMBEDDINGS: Mapping[str, Axes] = {
    "embeddings.word_embeddings.weight": ("V", "He"),
    "embeddings.position_embeddings.weight": ("P", "He"),
    "embeddings.token_type_embeddings.weight": ("K", "He"),
    "embeddings.LayerNorm.weight": ("He",),
    "embeddings.LayerNorm.bias": ("He",),
}

# Under `encoder.layer.<i>.`
LAYER_TABLE: Mapping[str, Axes] = {
    "attention.self.query.weight": ("C", "Ha"),
    "attention.self.query.bias": ("C",),
    "attention.self.key.weight": ("C", "Ha"),
    "attention.self.key.bias": ("C",),
    "attention.self.value.weight": ("C", "Ha"),
    "attention.self.value.bias": ("C",),
    "attention.output.dense.weight": ("Ha", "C"),
    "attention.output.dense.bias": ("Ha",),
    "attention.output.LayerNorm.weight": ("Ha",),
    "attention.output.LayerNorm.bias": ("Ha",),
    "intermediate.dense.weight": ("F", "Hf"),
    "intermediate.dense.bias": ("F",),
    "output.dense.weight": ("Hf", "F"),
    "output.dense.bias": ("Hf",),
    "output.LayerNorm.weight": ("Hf",),
    "output.LayerNorm.bias": ("Hf",),
}

# Parts that a checkpoint may lack. The MLM decoder's weight is the word embedding itself and is never stored.
HEADS: Mapping[Part, Mapping[str, Axes]] = {
    "pooler": {
        "pooler.dense.weight": ("Ht", "Ht"),
        "pooler.dense.bias": ("Ht",),
    },
    "mlm": {
        "cls.predictions.transform.dense.weight": ("He", "Ht"),
        "cls.predictions.transform.dense.bias": ("He",),
        "cls.predictions.transform.LayerNorm.weight": ("He",),
        "cls.predictions.transform.LayerNorm.bias": ("He",),
        "cls.predictions.bias": ("V",),
    },
    "nsp": {
        "cls.seq_relationship.weight": ("2", "Ht"),
        "cls.seq_relationship.bias": ("2",),
    },
}


def sizes(shape: EncoderShape) -> dict[str, int]:
    """Axis -> length, for a BERT of that shape."""
    hidden = dict.fromkeys(("He", "Ha", "Hf", "Ht", "C"), shape.hidden)
    return hidden | {"F": shape.ffn, "V": shape.vocab, "P": shape.positions, "K": shape.token_types, "2": 2}


def table(layers: int, parts: frozenset[Part]) -> Iterator[tuple[str, Axes]]:
    """Every parameter of a BERT with that many layers and those parts, in the order of stock `BertModel`."""
    yield from EMBEDDINGS.items()
    for i in range(layers):
        for name, axes in LAYER_TABLE.items():
            yield f"{LAYER}{i}.{name}", axes
    for part, rows in HEADS.items():
        if part in parts:
            yield from rows.items()


def shapes(shape: EncoderShape, parts: frozenset[Part]) -> dict[str, tuple[int, ...]]:
    """Parameter name -> tensor shape. All of the architecture and nothing else."""
    length = sizes(shape)
    return {name: tuple(length[axis] for axis in axes) for name, axes in table(shape.layers, parts)}


def layer_of(name: str) -> int | None:
    """0-based layer that a parameter belongs to; none outside the layers."""
    return int(name.removeprefix(LAYER).split(".", 1)[0]) if name.startswith(LAYER) else None
