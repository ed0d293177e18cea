"""Checkpoints on disk: whole or not there, the newest whole one counts, a few are kept."""

import pytest
import torch

from etd_ds.engine import checkpoint

STATE = {"parameter.w": torch.arange(6.0).view(2, 3)}


def _save(folder, step, keep=3, guard=lambda: None):
    return checkpoint.save(folder, checkpoint.Progress(step=step, tokens=7 * step), STATE, keep=keep, guard=guard)


def _find(folder, warn=lambda message: pytest.fail(f"unexpected warning: {message}")):
    return next(checkpoint.whole(folder, warn), None)


def test_what_is_saved_is_found_again(tmp_path):
    assert _find(tmp_path / "none") is None
    _save(tmp_path, 5)
    found = _find(tmp_path)
    assert found.progress == checkpoint.Progress(step=5, tokens=35)
    assert torch.equal(found.tensors()["parameter.w"], STATE["parameter.w"])
    assert checkpoint.open_whole(tmp_path, 5) == found


def test_only_the_newest_are_kept(tmp_path):
    for step in (2, 4, 6, 8, 10):
        _save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000008", "step-00000010"]
    assert "step-00000010" in (tmp_path / checkpoint.LATEST).read_text()


def test_what_interruptions_leave_crowds_out_none_of_the_others(tmp_path):
    for step in (100, 194, 195, 200, 300):
        checkpoint.save(tmp_path, checkpoint.Progress(step=step), STATE, keep=3, every=100, guard=lambda: None)
    assert sorted(int(path.name[5:]) for path in tmp_path.glob("step-*")) == [100, 195, 200, 300]


def test_the_one_just_written_is_kept_beside_later_ones(tmp_path):
    for step in (2000, 2500, 3000):
        _save(tmp_path, step)
    name = _save(tmp_path, 500, keep=1)
    assert (tmp_path / name).is_dir()
    assert name in (tmp_path / checkpoint.LATEST).read_text()
    assert checkpoint.open_whole(tmp_path, 500).progress.step == 500
    _save(tmp_path, 600, keep=1)
    assert not (tmp_path / name).exists()


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("part", [checkpoint.STATE, checkpoint.PROGRESS, checkpoint.DIGESTS])
@pytest.mark.parametrize("damage", [_truncate, _flip, lambda path: path.unlink()], ids=["short", "flipped", "missing"])
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path, part, damage):
    _save(tmp_path, 5)
    _save(tmp_path, 10)
    damage(tmp_path / "step-00000010" / part)
    warnings = []
    found = _find(tmp_path, warnings.append)
    # a digest file that lost its last newline still says the same
    if (part, damage) == (checkpoint.DIGESTS, _truncate):
        assert found.progress.step == 10
    else:
        assert found.progress.step == 5
        assert "step-00000010" in warnings[0]


def test_a_guard_that_forbids_leaves_nothing_behind(tmp_path):
    _save(tmp_path, 5)

    def forbid():
        raise ValueError("a newer attempt")

    with pytest.raises(ValueError, match="newer attempt"):
        _save(tmp_path, 10, guard=forbid)
    assert _find(tmp_path).progress.step == 5
    assert not list(tmp_path.glob(".*"))


def test_leftovers_of_killed_attempts_are_cleared(tmp_path):
    _save(tmp_path, 5)
    (tmp_path / ".step-00000010.123.tmp").mkdir()
    (tmp_path / ".step-00000010.123.tmp" / checkpoint.STATE).write_bytes(b"half")
    checkpoint.clear_leftovers(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [checkpoint.LATEST, "step-00000005"]
