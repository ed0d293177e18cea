"""The ends of logs and event files."""

from __future__ import annotations

from etd_ds.contract import events
from service import tail


def step(number):
    return events.Step(step=number, steps=9000, epoch=0.1, loss=1.0, terms={}, learning_rate=0.1, tokens=1,
                       tokens_per_second=1.0, eta_seconds=1.0)  # fmt: skip


ATTEMPT = events.Attempt(step=0, steps=9000, world_size=1, precision="fp32", device="cpu", sequences=1)


def test_last_lines_are_clean_and_a_progress_bar_counts_once(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"one\n\x1b[31mtwo\x1b[0m\x07\n 1%\r 50%\r100%\r\n\xff\xfe\nlast")
    assert tail.last_lines(log) == ["one", "two", "100%", "��", "last"]
    assert tail.last_lines(log, 1) == ["last"]
    assert tail.last_lines(tmp_path / "absent") == []


def test_last_step_of_a_long_file(tmp_path):
    path = tmp_path / "events.jsonl"
    events.append(path, ATTEMPT)
    for number in range(1, 1001):
        events.append(path, step(number))
    with path.open("ab") as out:
        out.write(b'{"type":"step","st')
    assert tail.last_step(path).step == 1000
    assert tail.progress(path)["step"] == 1000


def test_a_new_attempt_has_the_steps_it_continues_from(tmp_path):
    path = tmp_path / "events.jsonl"
    assert tail.progress(path) is None
    events.append(path, step(7))
    events.append(path, events.End(outcome="stopped", step=7))
    assert tail.last_end(path).outcome == "stopped"
    events.append(path, ATTEMPT.model_copy(update={"step": 7}))
    assert tail.progress(path) == {"step": 7, "steps": 9000}
    assert tail.last_end(path) is None


def test_following_begins_behind_the_last_finished_line(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"one\ntwo\nthr")
    assert tail.whole_lines(log, 1) == (["two"], 8)
    assert tail.whole_lines(log, 0) == ([], 8)
    assert tail.whole_lines(log, 9, limit=6) == (["wo"], 8)
    assert tail.whole_lines(tmp_path / "absent", 9) == ([], 0)
    log.write_bytes(b"unfinished")
    assert tail.whole_lines(log, 9) == ([], 0)
