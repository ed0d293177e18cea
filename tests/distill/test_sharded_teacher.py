"""A teacher that is split over the ranks hands out what a whole one does, and each rank holds its share alone."""

import os
import socket

import launching
import pytest
import torch

from etd_ds.contract import events, launch
from etd_ds.losses import OBJECTIVES

pytestmark = pytest.mark.slow
LENGTHS = (20, 33)
LAYERS = 4


def _bert():
    from transformers import BertConfig, BertModel

    torch.manual_seed(2)
    sizes = {"hidden_size": 64, "num_hidden_layers": LAYERS, "intermediate_size": 128, "num_attention_heads": 4}
    return BertModel(BertConfig(vocab_size=50, max_position_embeddings=64, **sizes), add_pooling_layer=False)


def _rank(env, answers):
    os.environ |= env
    from etd_ds.bert.encoder import Packed
    from etd_ds.distill.module import Guide
    from etd_ds.engine import ranks
    from etd_ds.engine.sharded import sharded
    from etd_ds.losses import Segments

    joined = ranks.join()
    objective = OBJECTIVES["tinybert"](2, LAYERS)
    whole, split = Guide(_bert(), objective), Guide(_bert(), objective)
    function = sharded(split, "fp32")
    worst = 0.0
    for length in LENGTHS:
        types = torch.zeros(length, dtype=torch.long)
        packed = Packed(torch.arange(length), torch.arange(length), types, Segments.packed([length]))
        for wanted, got in zip(vars(whole(packed)).values(), vars(function(packed)).values(), strict=True):
            assert wanted.keys() == got.keys()
            worst = max(worst, *(float((wanted[i] - got[i]).abs().max()) for i in wanted), 0.0)
    held = sum(p.numel() or p.ds_tensor.numel() for p in split.parameters())
    answers.put((worst, held / sum(p.numel() for p in whole.parameters())))
    ranks.leave(joined)


def test_activations_are_the_whole_teachers_and_memory_is_shared():
    context = launching._context()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    answers = context.Queue()
    ranks = [context.Process(target=_rank, args=({**env, "RANK": rank, "LOCAL_RANK": rank}, answers)) for rank in "01"]
    for process in ranks:
        process.start()
    found = [answers.get(timeout=120) for _ in ranks]
    assert launching.finish(ranks) == [0, 0]
    for worst, share in found:
        assert worst < 1e-5
        assert share < 0.6


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_a_run_learns_the_same(make_run, small_world, config):
    options = {"cache": small_world[2], "config": launching.CONFIGS / f"{config}.json"}
    runs = [make_run(dropout=0.0, steps=3, shard_teacher=shard) for shard in (False, True)]
    for run in runs:
        assert launching.train(run.root, **options) == [launch.EXIT_DONE] * 2
    whole, split = ([e.loss for e in events.read(run.events) if isinstance(e, events.Step)] for run in runs)
    assert split == pytest.approx(whole, rel=1e-5)
