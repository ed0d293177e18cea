"""Which student fits into which teacher."""

import pytest

from etd_ds.contract import errors, shape, spec

TEACHER = shape.BERT_BASE


def job(**fields) -> spec.JobSpec:
    return spec.JobSpec(**{"layers": 4, "hidden": 384, **fields})


def test_the_default_ffn_is_four_times_hidden_and_heads_stay():
    got = shape.student(job(), TEACHER)
    assert (got.layers, got.hidden, got.heads, got.ffn, got.head_size) == (4, 384, 12, 1536, 32)
    assert (got.vocab, got.positions) == (TEACHER.vocab, TEACHER.positions)


def test_the_teacher_itself_is_the_largest_student():
    assert shape.student(job(layers=12, hidden=768), TEACHER) == TEACHER


@pytest.mark.parametrize(
    ("fields", "culprit"),
    [
        ({"layers": 13}, "layers"),
        ({"hidden": 385}, "hidden"),
        ({"hidden": 780}, "hidden"),
        ({"hidden": 10**9}, "hidden"),
        ({"hidden": 6}, "hidden"),
        ({"ffn": 3073}, "ffn"),
        ({"seq_length": 513}, "seq_length"),
        ({"layer_selection": (1, 2, 3, 13)}, "layer_selection"),
        ({"layers": 5, "objective": "tinybert"}, "layers"),
    ],
)
def test_an_impossible_shape_names_its_field_and_what_is_allowed(fields, culprit):
    with pytest.raises(errors.ShapeError) as caught:
        shape.student(job(**fields), TEACHER)
    assert caught.value.field == culprit
    assert caught.value.wanted


def test_pairs_need_a_teacher_with_two_token_types():
    assert shape.student(job(layout="pairs"), TEACHER).token_types == 2
    one = TEACHER.model_copy(update={"token_types": 1})
    assert shape.student(job(), one).token_types == 1
    with pytest.raises(errors.ShapeError, match="wanted 'packed'") as caught:
        shape.student(job(layout="pairs"), one)
    assert caught.value.field == "layout"


@pytest.mark.parametrize(
    ("layers", "selection", "chosen"),
    [
        (6, "uniform", (2, 4, 6, 8, 10, 12)),
        (5, "uniform", (2, 5, 7, 10, 12)),
        (4, "uniform", (3, 6, 9, 12)),
        (12, "uniform", tuple(range(1, 13))),
        (4, "top", (9, 10, 11, 12)),
        (4, "bottom", (1, 2, 3, 4)),
        (2, (1, 12), (1, 12)),
    ],
)
def test_teacher_layers(layers, selection, chosen):
    assert shape.teacher_layers(job(layers=layers, layer_selection=selection), TEACHER) == chosen


@pytest.mark.parametrize("layers", range(1, 13))
def test_uniform_selection_is_ascending_and_ends_at_the_top(layers):
    chosen = shape.teacher_layers(job(layers=layers), TEACHER)
    assert len(set(chosen)) == layers
    assert list(chosen) == sorted(chosen)
    assert chosen[-1] == 12
    assert chosen[0] >= 1


CONFIG = {
    "model_type": "bert",
    "num_hidden_layers": 6,
    "hidden_size": 384,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}


def test_shape_of_a_checkpoint():
    assert shape.from_config(CONFIG) == shape.EncoderShape(layers=6, hidden=384, heads=12, ffn=1536)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "roberta"},
        {"model_type": None},
        {"auto_map": {"AutoModel": "evil.py"}},
        {"hidden_size": 385},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": "6"},
        {"is_decoder": True},
        {"position_embedding_type": "relative_key"},
    ],
)
def test_what_is_no_plain_bert_is_refused(change):
    with pytest.raises(errors.TeacherError) as caught:
        shape.from_config({**CONFIG, **change})
    assert caught.value.field == "teacher"
