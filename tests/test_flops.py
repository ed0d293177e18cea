"""Costs: the paper's numbers to the digits given, and parameter counts that are those of real models."""

import pytest
from transformers import BertConfig, BertModel

from etd_ds import flops
from etd_ds.contract.shape import BERT_BASE, EncoderShape
from etd_ds.extract import axes

SIX = EncoderShape(layers=6, hidden=384, heads=12, ffn=1536)
FOUR = SIX.model_copy(update={"layers": 4})


@pytest.mark.parametrize(
    ("student", "steps", "wanted"),
    [
        (SIX, 700_000, "1.5501e+19"),
        (FOUR, 700_000, "1.4697e+19"),
        (SIX, 300_000, "6.6431e+18"),
        (SIX, 200_000, "4.4288e+18"),
        (FOUR, 250_000, "5.2491e+18"),
    ],
)
def test_the_papers_distillation_runs_cost_what_it_says(student, steps, wanted):
    cost = flops.distillation(BERT_BASE, student, 512, 128 * steps, mode="electra_compat")
    assert f"{cost:.4e}" == wanted


def test_the_papers_pre_training_and_importance_pass_cost_what_it_says():
    assert f"{flops.pre_training(BERT_BASE, 512, 256 * 10**6, mode='electra_compat'):.4e}" == "6.4283e+19"
    assert f"{flops.pre_training(BERT_BASE, 512, 10_000, mode='electra_compat'):.3e}" == "2.511e+15"


@pytest.mark.parametrize(("shape", "wanted"), [(BERT_BASE, "109.5"), (SIX, "22.7"), (FOUR, "19.2")])
def test_the_papers_models_have_the_parameters_it_says(shape, wanted):
    assert f"{flops.parameters(shape) / 1e6:.1f}" == wanted


@pytest.mark.parametrize("pooler", [True, False])
def test_parameters_are_counted_as_the_axis_table_and_the_stock_model_have_them(pooler):
    shape = EncoderShape(layers=3, hidden=12, heads=3, ffn=7, vocab=19, positions=11, token_types=3)
    table = axes.shapes(shape, frozenset({"pooler"}) if pooler else frozenset())
    counted = 0
    for size in table.values():
        elements = 1
        for n in size:
            elements *= n
        counted += elements
    config = BertConfig(
        vocab_size=19,
        hidden_size=12,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=7,
        max_position_embeddings=11,
        type_vocab_size=3,
    )
    assert flops.parameters(shape, pooler=pooler) == counted
    assert counted == BertModel(config, add_pooling_layer=pooler).num_parameters()


def test_the_exact_ledger_differs_from_electras_where_it_should():
    exact, compat = (flops.forward(BERT_BASE, 512, mode=mode) for mode in ("exact", "electra_compat"))
    dense_lookup = 512 * 768 * 2 * (30522 + 512 + 2)
    assert compat - exact > dense_lookup
    matmuls = 512 * 12 * (8 * 768**2 + 4 * 768 * 512 + 4 * 768 * 3072)
    assert 1.0 < exact / matmuls < 1.03
    assert flops.forward(SIX, 512, mode="exact") > flops.forward(SIX.model_copy(update={"heads": 6}), 512, mode="exact")
