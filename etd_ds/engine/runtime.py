"""DeepSpeed's engine behind five verbs: forward, backward, update, gather the whole state, load it again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import deepspeed
import torch
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from pydantic import ValidationError
from torch import Tensor, nn

from etd_ds.contract import errors
from etd_ds.engine import adam
from etd_ds.engine.ranks import Ranks

MOMENTS = ("exp_avg", "exp_avg_sq")


# section of a config -> DeepSpeed's own model of it
_SECTIONS = {"zero_optimization": DeepSpeedZeroConfig, "fp16": DeepSpeedFP16Config, "bf16": DeepSpeedBF16Config}


def check(config: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for what DeepSpeed does not know in the sections that matter."""
    for name, model in _SECTIONS.items():
        try:
            model(**config.get(name, {}))
        except ValidationError as error:
            raise _refusal(error, name) from None


def _refusal(error: ValidationError, *section: str) -> errors.ConfigError:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in (*section, *first["loc"]))
    return errors.ConfigError(f"deepspeed: {where}: {first['msg']}, got {first['input']!r}")


class Update(NamedTuple):
    """What one optimizer step did."""

    grad_norm: float | None
    """Global gradient norm before clipping; NaN when the update was skipped (fp16), none where ZeRO 0 hides it."""
    loss_scale: float | None
    """fp16 only."""
    exhausted: bool = False
    """fp16 only: it overflowed although the loss scale cannot get any smaller."""


class Engine:
    """A module trained by DeepSpeed. All methods but `eval` and `train` are collective: every rank calls them."""

    def __init__(self, module: nn.Module, config: Mapping[str, Any], ranks: Ranks) -> None:
        self._ranks = ranks
        if not config["optimizer"]["params"].get("torch_adam"):
            adam.load(config)
        try:
            self._engine, *_ = deepspeed.initialize(
                model=module, model_parameters=_groups(module), config=dict(config), dist_init_required=False
            )
        except ValidationError as error:
            raise _refusal(error) from None
        self._micro_steps = int(config["gradient_accumulation_steps"])
        self._fp16 = bool(config["fp16"]["enabled"])
        if self._fp16:
            # DeepSpeed would crash at the smallest scale; `Update.exhausted` says it instead
            self._engine.optimizer.loss_scaler.raise_error_at_min_scale = False

    @property
    def micro_steps(self) -> int:
        """Calls of `backward` that make one update."""
        return self._micro_steps

    def train(self) -> None:
        self._engine.train()

    def eval(self) -> None:
        self._engine.eval()

    def close(self) -> None:
        """Let go of the module and of all memory. Without it an engine lives as long as its process."""
        self._engine.destroy()

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`: the updates follow the SUM over micro steps and ranks, not their mean."""
        self._engine.backward(loss * self._ranks.world_size, scale_wrt_gas=False)

    def update(self, learning_rate: float) -> Update | None:
        """After each `backward`; makes the update after the last micro step, and says what it did."""
        last = self._engine.is_gradient_accumulation_boundary()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        before = self._scale() if self._fp16 else None
        self._engine.step()
        if not last:
            return None
        skipped = self._fp16 and self._engine.optimizer.overflow
        norm = self._engine.get_global_grad_norm()
        exhausted = skipped and before == self._engine.optimizer.loss_scaler.min_scale
        return Update(math.nan if skipped else None if norm is None else float(norm), before, exhausted)

    def gather(self) -> dict[str, Tensor]:
        """The whole state in fp32, on the CPU of rank 0 (empty elsewhere): parameters and Adam's moments by name.

        Of what does not learn the engine has a copy in the precision that it computes in, and nobody needs that.
        """
        stepped = any(steps > 0 for steps in self._adam_steps())
        self._link_moments()
        state: dict[str, Tensor] = {}
        for name, parameter in self._learning():
            whole = self._whole(parameter)
            found = {f"parameter.{name}": whole}
            for key in MOMENTS:
                # in fp16 all updates so far may have been skipped
                found[f"{key}.{name}"] = self._moment(parameter, key) if stepped else torch.zeros_like(whole)
            if self._ranks.first:
                state |= {key: value.detach().float().cpu().clone() for key, value in found.items()}
        return state

    def scalars(self) -> dict[str, float]:
        """The rest of the state: Adam's step count, and fp16's loss scale with its counters."""
        found = {"adam_step": float(next(self._adam_steps(), 0))}
        if self._fp16:
            scaler = self._engine.optimizer.loss_scaler
            found |= {key: float(getattr(scaler, key)) for key in _SCALER if hasattr(scaler, key)}
        return found

    def load(self, state: Mapping[str, Tensor], scalars: Mapping[str, float]) -> None:
        """Set the whole state, on any number of ranks and any ZeRO stage. Adam must have stepped once before."""
        self._link_moments()
        for name, parameter in self._learning():
            self._set_whole(parameter, state[f"parameter.{name}"])
            for key in MOMENTS:
                self._set_moment(parameter, key, state[f"{key}.{name}"])
        for holder in self._adam_holders():
            if isinstance(holder["step"], Tensor):
                holder["step"].fill_(scalars["adam_step"])
            else:
                holder["step"] = int(scalars["adam_step"])
        if self._fp16:
            scaler = self._engine.optimizer.loss_scaler
            for key in _SCALER:
                if key in scalars:
                    setattr(scaler, key, type(getattr(scaler, key))(scalars[key]))

    def _link_moments(self) -> None:
        """ZeRO 1 and 2 of DeepSpeed 0.19 link parameters to moments after the FIRST group's first step: too early."""
        if hasattr(self._engine.optimizer, "_hp_optimizer_states_linked"):
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _learning(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, one) for name, one in self._engine.module.named_parameters() if one.requires_grad)

    # ---------------------------------------------------------------- one parameter, whatever the ZeRO stage

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        value: Tensor | None = safe_get_full_fp32_param(parameter)
        return parameter if value is None else value  # stage 0 has no other copy

    def _set_whole(self, parameter: nn.Parameter, value: Tensor) -> None:
        value = value.to(self._ranks.device)
        safe_set_full_fp32_param(parameter, value)
        # beside the fp32 master copy there is the one that forward computes with
        zero3 = hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=zero3), torch.no_grad():
            if self._ranks.first or not zero3:
                parameter.copy_(value)

    def _moment(self, parameter: nn.Parameter, key: str) -> Tensor:
        value: Tensor | None = safe_get_full_optimizer_state(parameter, key)
        if value is None:  # stage 0
            value = self._adam.state[parameter][key]
            assert value is not None
        return value

    def _set_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        value = value.to(self._ranks.device)
        if parameter in self._adam.state:
            self._adam.state[parameter][key].copy_(value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)

    @property
    def _adam(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self._engine.basic_optimizer
        return optimizer

    def _adam_holders(self) -> Iterator[dict[str, Any]]:
        """Where the Adam in use keeps its step count: in each state, in each group, or in both."""
        holders: Iterable[dict[str, Any]] = [*self._adam.state.values(), *self._adam.param_groups]
        return (holder for holder in holders if "step" in holder)

    def _adam_steps(self) -> Iterator[int]:
        return (int(holder["step"]) for holder in self._adam_holders())

    def _scale(self) -> float:
        return float(self._engine.optimizer.loss_scaler.cur_scale)


_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def _groups(module: nn.Module) -> list[dict[str, Any]]:
    """Biases and LayerNorms are not decayed."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in learning if p.ndim > 1]},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
