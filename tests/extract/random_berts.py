"""Small random BERTs in fp64 as stock classes, and the way from our parameter names to theirs and back."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from etd_ds.contract import spec
from etd_ds.contract.shape import EncoderShape

PARTS = {
    "BertModel": frozenset({"pooler"}),
    "BertForMaskedLM": frozenset({"mlm"}),
    "BertForPreTraining": frozenset({"pooler", "mlm", "nsp"}),
}
_CLASSES = {"BertModel": BertModel, "BertForMaskedLM": BertForMaskedLM, "BertForPreTraining": BertForPreTraining}


def config(shape: EncoderShape, act: str = "gelu") -> BertConfig:
    return BertConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.ffn,
        max_position_embeddings=shape.positions,
        type_vocab_size=shape.token_types,
        hidden_act=act,
        attn_implementation="sdpa",
    )


def random_bert(architecture: str, shape: EncoderShape, seed: int = 0):
    """A stock model whose every parameter, LayerNorms and biases too, is far from a constant."""
    model = _CLASSES[architecture](config(shape)).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
            if "LayerNorm.weight" in name:
                parameter.add_(1.0)
    return model


def state_of(model) -> dict[str, torch.Tensor]:
    """Its parameters by our names: no `bert.` prefix, no tied decoder."""
    return {name.removeprefix("bert."): value.detach() for name, value in model.named_parameters()}


def model_of(architecture: str, shape: EncoderShape, state: dict[str, torch.Tensor]):
    """A stock model holding just these parameters; strict both ways."""
    model = _CLASSES[architecture](config(shape)).double().eval()
    own = dict(model.named_parameters())
    assert {name.removeprefix("bert.") for name in own} == state.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            assert parameter.shape == state[name.removeprefix("bert.")].shape, name
            parameter.copy_(state[name.removeprefix("bert.")])
    return model


@st.composite
def shapes(draw) -> tuple[EncoderShape, spec.JobSpec]:
    """A teacher and a job that asks for a student that can be cut from it."""
    heads = draw(st.sampled_from([1, 2, 3]))
    size = draw(st.integers(1, 4))
    layers = draw(st.integers(1, 3))
    teacher = EncoderShape(
        layers=layers,
        hidden=heads * size,
        heads=heads,
        ffn=draw(st.integers(1, 9)),
        vocab=13,
        positions=9,
        token_types=2,
    )
    job = spec.JobSpec(
        layers=draw(st.integers(1, layers)),
        hidden=heads * draw(st.integers(1, size)),
        ffn=draw(st.integers(1, teacher.ffn)),
        mode="rand",
        seed=draw(st.integers(0, 5)),
        seq_length=8,
        layer_selection=draw(st.sampled_from(["uniform", "top", "bottom"])),
    )
    return teacher, job


def inputs(shape: EncoderShape) -> dict[str, torch.Tensor]:
    """Two sequences, the second one padded."""
    generator = torch.Generator().manual_seed(1)
    mask_BS = torch.ones(2, 7, dtype=torch.long)
    mask_BS[1, 4:] = 0
    return {
        "input_ids": torch.randint(shape.vocab, (2, 7), generator=generator),
        "token_type_ids": torch.randint(shape.token_types, (2, 7), generator=generator),
        "attention_mask": mask_BS,
    }
