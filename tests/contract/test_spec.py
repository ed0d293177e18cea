"""The job spec: complete by default, frozen, and loud about what is wrong."""

import json

import pytest
from pydantic import ValidationError

from etd_ds.contract import errors, flags, spec


def test_the_users_own_example_is_complete():
    job = spec.JobSpec.model_validate({"layers": 4, "hidden": 384, "mode": "impt"})
    assert (job.teacher, job.corpus, job.objective) == ("embedded", "embedded", "last_layer")
    assert job.batch_size == 128
    assert job.learning_rate == 1e-4
    assert job.warmup_ratio == 0.1


def test_a_spec_survives_its_journey_through_json():
    job = spec.JobSpec(layers=2, hidden=96, layer_selection=(2, 5), reverse=("ffn",), epochs=1.5)
    assert spec.JobSpec.model_validate_json(job.model_dump_json()) == job


def test_every_field_says_what_it_means():
    for name, field in spec.JobSpec.model_fields.items():
        assert field.description, name


def test_a_spec_cannot_be_changed():
    job = spec.JobSpec(layers=4, hidden=384)
    with pytest.raises(ValidationError):
        job.layers = 5


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"layers": 0}, "layers"),
        ({"layers": -1}, "layers"),
        ({"layers": True}, "layers"),
        ({"layers": 2.5}, "layers"),
        ({"hidden": "wide"}, "hidden"),
        ({"hidden": 2**40}, "hidden"),
        ({"mode": "best"}, "mode"),
        ({"colour": "red"}, "colour"),
        ({"steps": 10, "epochs": 2}, "steps"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"learning_rate": True}, "learning_rate"),
        ({"warmup_ratio": 1.0}, "warmup_ratio"),
        ({"layer_selection": [2, 1, 3, 4]}, "layer_selection"),
        ({"layer_selection": [1, 2]}, "layer_selection"),
        ({"layer_selection": "middle"}, "layer_selection"),
        ({"reverse": ["ffn", "ffn"]}, "reverse"),
        ({"reverse": ["ffn"], "mode": "rand"}, "reverse"),
        ({"batch_size": 10, "gpus": 4}, "batch_size"),
        ({"batch_size": 8, "gpus": 2, "micro_batch_size": 3}, "micro_batch_size"),
        ({"deepspeed": "../../etc/passwd"}, "deepspeed"),
        ({"teacher": "a\x00b"}, "teacher"),
        ({"seed": -1}, "seed"),
        ({"gpus": 10**9}, "gpus"),
    ],
)
def test_what_is_wrong_is_named(change, field):
    with pytest.raises(errors.EtdError) as caught:
        flags.parse({"layers": 4, "hidden": 384, **change})
    assert caught.value.field == field
    assert str(caught.value).startswith(field)


@pytest.mark.parametrize("missing", ["layers", "hidden"])
def test_a_missing_shape_is_named(missing):
    given = {"layers": 4, "hidden": 384}
    del given[missing]
    with pytest.raises(errors.EtdError) as caught:
        flags.parse(given)
    assert caught.value.field == missing


def test_steps_follow_from_epochs_and_the_corpus():
    job = spec.JobSpec(layers=4, hidden=384, batch_size=128)
    assert job.total_steps(700_000 * 128 // 5) == 700_000  # the paper's five epochs
    assert job.model_copy(update={"epochs": 0.5}).total_steps(1280) == 5
    assert job.model_copy(update={"steps": 7}).total_steps(1280) == 7
    assert job.total_steps(1) == 1


def test_an_error_is_ready_for_json():
    with pytest.raises(errors.EtdError) as caught:
        flags.parse({"layers": 4, "hidden": 384, "layer_selection": [1]})
    assert json.loads(json.dumps(caught.value.as_dict()))["field"] == "layer_selection"
