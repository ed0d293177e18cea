"""How long ranks wait for each other."""

import pytest
from torch.distributed import distributed_c10d

from etd_ds.engine import ranks


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_groups_that_deepspeed_makes_are_bounded_whatever_they_speak(monkeypatch, backend):
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        monkeypatch.setattr(distributed_c10d, name, getattr(distributed_c10d, name))  # to be set back
    ranks._bound_further_groups()
    assert distributed_c10d._get_default_timeout(backend) == ranks.TIMEOUT
