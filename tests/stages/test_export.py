"""Kept checkpoints as revisions: only what is on disk as it was written becomes one."""

import pytest
import torch

from etd_ds.contract import errors, rundir
from etd_ds.engine import checkpoint
from etd_ds.stages import export

STATE = {"parameter.bert.w": torch.arange(6.0)}


def _flip(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def _empty(content):
    return b"{}"


@pytest.mark.parametrize(
    ("part", "damage"), [(checkpoint.STATE, _flip), (checkpoint.PROGRESS, _empty), (checkpoint.DIGESTS, _empty)]
)
def test_a_damaged_checkpoint_becomes_no_revision(tmp_path, part, damage):
    run = rundir.RunDir(tmp_path)
    name = checkpoint.save(run.checkpoints, checkpoint.Progress(step=5), STATE, keep=1, guard=lambda: None)
    file = run.checkpoints / name / part
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(errors.RunFolderError, match="step-5: the checkpoint is damaged"):
        export.revision(run, 5)
    assert not run.revisions.exists()


def test_a_checkpoint_that_is_no_longer_kept_is_named(tmp_path):
    with pytest.raises(errors.RunFolderError, match="step-5: no such checkpoint"):
        export.revision(rundir.RunDir(tmp_path), 5)
