"""A module that only looks forward, its parameters split over the ranks: ZeRO-3 inference, for a teacher too large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deepspeed
from torch import nn

from etd_ds.engine.config import Dtype


def sharded(module: nn.Module, precision: Dtype) -> Callable[..., Any]:
    """`module` as a function; each rank keeps its share of every matrix and gathers one layer at a time.

    Collective, here and in every call: all ranks must call it equally often. Vectors stay whole: they are small.
    """
    longest = max(parameter.numel() for parameter in module.parameters() if parameter.ndim == 1)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": longest + 1},
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "steps_per_print": 2**62,
    }
    # parameter by parameter, so that no rank's GPU ever holds all of them
    deepspeed.zero.Init(module=module, config_dict_or_path=config)
    engine, *_ = deepspeed.initialize(model=module, config=config, dist_init_required=False)
    engine.eval()
    function: Callable[..., Any] = engine
    return function
