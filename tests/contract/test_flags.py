"""The shell's flags are the spec's fields, no more and no less."""

import argparse

import pytest

from etd_ds.contract import errors, flags, spec


def parse(text: str, **options) -> spec.JobSpec:
    parser = argparse.ArgumentParser()
    flags.add(parser, **options)
    return flags.read(parser.parse_args(text.split()))


def test_flags_and_json_mean_the_same():
    assert parse("--layers 3 --hidden 192 --mode rand --seed 7 --epochs 0.5 --no-hidden-consistency") == spec.JobSpec(
        layers=3, hidden=192, mode="rand", seed=7, epochs=0.5, hidden_consistency=False
    )


def test_lists_and_rules_share_a_flag():
    assert parse("--layers 3 --hidden 192 --layer-selection 2 4 6").layer_selection == (2, 4, 6)
    assert parse("--layers 1 --hidden 192 --layer-selection 6").layer_selection == (6,)
    assert parse("--layers 3 --hidden 192 --layer-selection top").layer_selection == "top"
    assert parse("--layers 3 --hidden 192 --reverse ffn head").reverse == ("ffn", "head")
    assert parse("--layers 3 --hidden 192 --reverse").reverse == ()


def test_none_is_a_mode_and_elsewhere_the_absence_of_a_value():
    job = parse("--layers 3 --hidden 192 --mode none --ffn none")
    assert (job.mode, job.ffn) == ("none", None)


def test_every_field_has_a_flag_unless_left_out():
    parser = argparse.ArgumentParser()
    flags.add(parser, leave_out={"teacher"})
    known = {action.dest for action in parser._actions}
    assert known - {"help"} == set(spec.JobSpec.model_fields) - {"teacher"}


def test_help_can_be_printed():
    parser = argparse.ArgumentParser()
    flags.add(parser)
    assert "Peak learning rate" in parser.format_help()


def test_a_bad_value_is_told_with_its_flag():
    with pytest.raises(errors.EtdError, match=r"layers: .*'many'"):
        parse("--layers many --hidden 192")
