"""How long ranks wait for each other."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from etd_ds.engine import ranks


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        monkeypatch.setattr(distributed_c10d, name, getattr(distributed_c10d, name))  # to be set back


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_groups_that_deepspeed_makes_are_bounded_whatever_they_speak(backend):
    ranks._bound_further_groups(ranks.TIMEOUT)
    assert distributed_c10d._get_default_timeout(backend) == ranks.TIMEOUT


def test_where_compilers_run_every_group_waits_as_long_as_a_start_may_take(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1,
                            timeout=ranks.TIMEOUT)  # fmt: skip
    try:
        ranks.wait_for_compilers()
        for group in (dist.group.WORLD, dist.new_group()):
            assert group._get_backend(torch.device("cpu")).options._timeout == ranks.START
    finally:
        dist.destroy_process_group()
