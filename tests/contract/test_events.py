"""The event log: whole lines only, from any offset, whatever a killed writer left behind."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etd_ds.contract import events

STEP = events.Step(
    step=10,
    steps=100,
    epoch=0.5,
    loss=1.5,
    terms={"attention": 1.0, "hidden": 0.5},
    learning_rate=1e-4,
    tokens=1000,
    tokens_per_second=10.0,
    eta_seconds=9.0,
)


def test_events_come_back_as_they_went_in(tmp_path):
    path = tmp_path / "events.jsonl"
    written = [events.Stage(stage="distill", state="start"), STEP, events.End(outcome="done", step=100)]
    for event in written:
        events.append(path, event)
    assert list(events.read(path)) == written


def test_no_file_is_no_events(tmp_path):
    assert list(events.lines(tmp_path / "none")) == []


def test_a_reader_continues_where_it_stopped(tmp_path):
    path = tmp_path / "events.jsonl"
    for step in range(5):
        events.append(path, events.Warn(message=str(step)))
    ends = [line.end for line in events.lines(path)]
    assert [e.message for e in events.read(path, ends[2])] == ["3", "4"]
    assert list(events.lines(path, ends[-1])) == []


@given(cut=st.integers(min_value=1, max_value=60))
def test_a_torn_last_line_waits_for_its_end(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    events.append(path, STEP)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:cut])
    assert len(list(events.lines(path))) == 1
    path.write_bytes(whole + whole)
    assert len(list(events.lines(path))) == 2


def test_a_torn_line_costs_no_other(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"type": "step", "st')
    events.append(path, STEP)
    assert list(events.read(path)) == [STEP]


def test_every_event_has_its_own_name():
    kinds = get_args(get_args(events.Event)[0])
    names = [kind.model_fields["type"].default for kind in kinds]
    assert len(set(names)) == len(names) >= 7


def test_an_unknown_event_is_refused():
    with pytest.raises(ValueError, match="type"):
        events.parse('{"type": "party"}')
