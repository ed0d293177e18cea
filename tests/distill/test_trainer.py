"""The trainer's first stages, each rank in a thread."""

import concurrent.futures
import threading

import pytest
import torch
import torch.distributed as dist
from launching import CONFIGS

from etd_ds.distill.stopping import Stop
from etd_ds.engine.ranks import Ranks
from etd_ds.stages import distill


@pytest.fixture
def trainers(make_run, small_world, monkeypatch):
    """Two ranks of one run; they have a rendezvous store, and no collectives."""
    store = dist.HashStore()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    settings = distill.check([make_run()], ds_config=CONFIGS / "cpu.json", world_size=2)
    ranks = [Ranks(rank, 2, rank, torch.device("cpu")) for rank in range(2)]
    return [distill.Trainer([], settings, cache=small_world[2], ranks=rank, stop=Stop()) for rank in ranks]


def test_no_rank_goes_on_before_all_have_opened_the_corpus(trainers, monkeypatch):
    """However long one takes: what follows are collectives, which have a time-out."""
    opened, prepare = threading.Event(), distill.data.prepare

    def late(*args, progress, **options):
        if not progress:
            opened.wait()
        return prepare(*args, progress=False, **options)

    monkeypatch.setattr(distill.data, "prepare", late)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(trainer._data) for trainer in trainers)
        try:
            with pytest.raises(concurrent.futures.TimeoutError):
                first.result(3)
        finally:
            opened.set()
        assert first.result(30).manifest.key == second.result(30).manifest.key
