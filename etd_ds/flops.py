"""What a BERT costs: parameters and floating point operations, as tables [ETD Table 1, ELECTRA flops_computation]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from etd_ds.contract.shape import EncoderShape

Mode = Literal["exact", "electra_compat"]

# ELECTRA's constants: operations per element.
DROPOUT, LAYER_NORM, ACTIVATION, SOFTMAX = 4, 5, 8, 5
MASKED = 0.15625
"""Share of the positions that the MLM head sees (ELECTRA rounds 15 % up to this)."""

TRAIN_OVER_FORWARD: Mapping[Mode, int] = {"exact": 3, "electra_compat": 2}
"""Forward and backward in forwards: a backward pass is two, ELECTRA counts one."""

PAPER_BATCH, PAPER_TOKENS, PAPER_STEPS = 128, 512, 700_000
"""The paper's distillation budget [ETD §4.1]: 5 epochs of Wikipedia."""


def count(state: Mapping[str, Tensor]) -> int:
    """Elements of a set of parameters."""
    return sum(tensor.numel() for tensor in state.values())


def parameters(shape: EncoderShape, *, pooler: bool = True) -> int:
    """Exact number of parameters of stock `BertModel`."""
    h, f = shape.hidden, shape.ffn
    embeddings = (shape.vocab + shape.positions + shape.token_types) * h + 2 * h
    layer = 4 * (h * h + h) + (h * f + f) + (f * h + h) + 4 * h
    return embeddings + shape.layers * layer + (h * h + h if pooler else 0)


def block_terms(shape: EncoderShape, tokens: int, mode: Mode, *, dropout: bool) -> dict[str, int]:
    """Forward FLOPs of one layer for ONE token of a sequence of that many, by term."""
    compat = mode == "electra_compat"
    h, i, s = shape.hidden, shape.ffn, tokens
    heads = max(h // 64, 1) if compat else shape.heads
    drop = DROPOUT if dropout or compat else 0
    return {
        "qkv": 3 * 2 * h * h,
        "qkv bias": 3 * h,
        "scores": 2 * h * s,
        "softmax": SOFTMAX * s * heads,
        "score dropout": drop * s * heads,
        "score scale": s * heads,
        "weighted values": 2 * h * s,
        "attention output": 2 * h * h,
        "attention output bias": h,
        "attention dropout": drop * h,
        "attention residual": h,
        # ELECTRA counts this LayerNorm once a token, not once an element
        "attention LayerNorm": LAYER_NORM * (1 if compat else h),
        "feed-forward in": 2 * h * i,
        "activation": ACTIVATION * i,
        "feed-forward in bias": i,
        "feed-forward out": 2 * h * i,
        "feed-forward out bias": h,
        "feed-forward dropout": drop * h,
        "feed-forward residual": h,
        "feed-forward LayerNorm": LAYER_NORM * h,
    }


def embedding_terms(shape: EncoderShape, tokens: int, mode: Mode, *, dropout: bool) -> dict[str, int]:
    """Forward FLOPs of the embeddings for one token, by term. ELECTRA counts lookups as dense products."""
    compat = mode == "electra_compat"
    h = shape.hidden
    return {
        "word lookup": 2 * h * shape.vocab if compat else 0,
        "position and type lookup": 2 * h * (tokens + 2) if compat else 0,
        "sum": 2 * h,
        "LayerNorm": LAYER_NORM * h,
        "dropout": (DROPOUT if dropout or compat else 0) * h,
    }


def mlm_terms(shape: EncoderShape) -> dict[str, int]:
    """Forward FLOPs of the MLM head for one position that it sees, by term."""
    h, v = shape.hidden, shape.vocab
    return {
        "transform": 2 * h * h,
        "transform bias": h,
        "transform activation": ACTIVATION * h,
        "transform LayerNorm": LAYER_NORM * h,
        "decoder": 2 * h * v,
        "softmax": SOFTMAX * v,
        "target": 2 * v,
    }


def forward(
    shape: EncoderShape, tokens: int, *, mode: Mode = "exact", mlm: bool = False, dropout: bool = False
) -> float:
    """FLOPs of one forward pass over one sequence, pooler left out."""
    block = sum(block_terms(shape, tokens, mode, dropout=dropout).values())
    embedding = sum(embedding_terms(shape, tokens, mode, dropout=dropout).values())
    head = MASKED * sum(mlm_terms(shape).values()) if mlm else 0.0
    return tokens * (shape.layers * block + embedding + head)


def pre_training(shape: EncoderShape, tokens: int, sequences: int, *, mode: Mode = "exact") -> float:
    """FLOPs of MLM pre-training, or of one importance pass, over that many sequences."""
    return sequences * TRAIN_OVER_FORWARD[mode] * forward(shape, tokens, mode=mode, mlm=True, dropout=True)


def distillation(
    teacher: EncoderShape,
    student: EncoderShape,
    tokens: int,
    sequences: int,
    *,
    mode: Mode = "exact",
    dropout: bool = False,
) -> float:
    """FLOPs of distilling over that many sequences: the teacher forward, the student forward and backward.

    `dropout` says whether the student is trained with it; `electra_compat` counts it in any case.
    """
    one = forward(teacher, tokens, mode=mode)
    one += TRAIN_OVER_FORWARD[mode] * forward(student, tokens, mode=mode, dropout=dropout)
    return sequences * one
