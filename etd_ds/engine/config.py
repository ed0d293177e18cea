"""DeepSpeed configs: what may stand in a file, and what the job spec adds to it. Pure; needs no DeepSpeed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from etd_ds.contract import errors, spec

Dtype = Literal["fp32", "bf16", "fp16"]

# Top-level keys that a file in ds_configs/ may hold. DeepSpeed silently ignores names that it does not know.
ALLOWED = {
    "zero_optimization",
    "bf16",
    "fp16",
    "communication_data_type",
    "data_types",
    "comms_logger",
    "wall_clock_breakdown",
    "aio",
}
# Those of them whose value is an object.
SECTIONS = ("zero_optimization", "bf16", "fp16", "data_types", "comms_logger", "aio")
# key -> where the value comes from instead
SPEC_OWNED = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_accumulation_steps": "batch_size and micro_batch_size",
    "gradient_clipping": "max_grad_norm",
    "optimizer": "learning_rate and weight_decay",
    "scheduler": "learning_rate, warmup_ratio, steps and epochs",
    "steps_per_print": "log_every",
}
REMOVED = {
    "amp",
    "autotuning",
    "compression_training",
    "curriculum_learning",
    "elasticity",
    "progressive_layer_drop",
    "sparse_attention",
}
# Tokens of one forward pass when the spec leaves the micro batch open: enough to keep the device busy.
TOKENS_PER_PASS = {"cpu": 4096, "cuda": 65536}


@dataclass(frozen=True)
class Hardware:
    """What this machine can compute in."""

    device: Literal["cpu", "cuda"]
    bf16: bool
    fp16: bool
    compiler: bool = False
    """Whether DeepSpeed's own Adams are compiled, or can be here."""
    triton: bool = True
    """Whether Triton's kernels can be launched here."""


def read(path: Path) -> dict[str, Any]:
    """A DeepSpeed config from its file, checked. Raises `ConfigError` that names the key and says what to do."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "none"
        raise errors.ConfigError(f"deepspeed: no file {path}; that folder has: {known}", got=str(path)) from None
    except OSError as error:
        raise errors.ConfigError(f"deepspeed: {path} cannot be read: {error.strerror}", got=str(path)) from None
    except ValueError as error:
        raise errors.ConfigError(f"deepspeed: {path.name} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise errors.ConfigError(f"deepspeed: {path.name} holds no JSON object")
    check(config, path.name)
    return config


def check(config: Mapping[str, Any], name: str) -> None:
    """Refuse keys that belong to the job spec, that DeepSpeed has removed, or that it would ignore."""
    for key in config:
        if key in SPEC_OWNED:
            reason = f"belongs to the job spec: set {SPEC_OWNED[key]} there"
        elif key in REMOVED:
            reason = "is no longer supported by DeepSpeed; delete it"
        elif key not in ALLOWED:
            reason = f"is not one of {', '.join(sorted(ALLOWED))}; DeepSpeed would ignore it"
        else:
            continue
        raise errors.ConfigError(f"deepspeed: {name}: key {key!r} {reason}", wanted=sorted(ALLOWED), got=key)
    for key in SECTIONS:
        if not isinstance(section := config.get(key, {}), Mapping):
            raise errors.ConfigError(f"deepspeed: {name}: {key} wanted an object, got {section!r}", got=section)
    if path := _find_auto(config):
        raise errors.ConfigError(f"deepspeed: {name}: {path} is 'auto'; write a value or delete the key", got="auto")
    stage = zero_stage(config)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise errors.ConfigError(
            f"deepspeed: {name}: zero_optimization.stage wanted 0, 1, 2 or 3, got {stage!r}", got=stage
        )
    for key in ("bf16", "fp16"):
        if not isinstance(enabled := config.get(key, {}).get("enabled", False), bool):
            raise errors.ConfigError(
                f"deepspeed: {name}: {key}.enabled wanted true or false, got {enabled!r}", got=enabled
            )
    if scale := config.get("fp16", {}).get("loss_scale", 0):
        raise errors.ConfigError(
            f"deepspeed: {name}: fp16.loss_scale wanted 0 (dynamic), got {scale!r}: with a fixed one that is too high "
            "a run would skip every update",
            got=scale,
        )
    if cast := config.get("fp16", {}).get("auto_cast", False):
        raise errors.ConfigError(
            f"deepspeed: {name}: fp16.auto_cast wanted false, got {cast!r}: a batch is ids, which are not rounded",
            got=cast,
        )
    if _enabled(config, "bf16") and _enabled(config, "fp16"):
        raise errors.ConfigError(f"deepspeed: {name}: wanted bf16 or fp16, got both enabled")


def zero_stage(config: Mapping[str, Any]) -> Any:
    """The ZeRO stage that a config asks for; without one, 0."""
    return config.get("zero_optimization", {}).get("stage", 0)


def precision(asked: spec.Precision, config: Mapping[str, Any], hardware: Hardware) -> Dtype:
    """The precision to train in: the spec's, else the config's, else the best that the hardware has.

    Raises `HardwareError` if this machine cannot compute in it, `ConfigError` if spec and config disagree.
    """
    enabled = [name for name in ("bf16", "fp16") if _enabled(config, name)]
    chosen: Any = asked
    if asked != "auto":
        if enabled and enabled != [asked]:
            raise errors.ConfigError(
                f"precision: the spec says {asked}, the DeepSpeed config enables {enabled[0]}; change one of them",
                field="precision",
                wanted=enabled[0],
                got=asked,
            )
    elif enabled:
        chosen = enabled[0]
    elif hardware.device == "cuda" and hardware.bf16:
        chosen = "bf16"
    elif hardware.device == "cuda" and hardware.fp16:
        chosen = "fp16"
    else:
        chosen = "fp32"
    can = [name for name, able in (("fp32", True), ("bf16", hardware.bf16), ("fp16", hardware.fp16)) if able]
    if chosen not in can:
        raise errors.HardwareError(
            f"precision: {chosen} cannot be trained on this {hardware.device}; wanted one of auto, {', '.join(can)}",
            field="precision",
            wanted=["auto", *can],
            got=chosen,
        )
    if chosen != "fp32" and zero_stage(config) == 0:
        # DeepSpeed 0.19 scales the first bf16 update wrongly there
        raise errors.ConfigError(
            f"deepspeed: ZeRO stage 0 trains in fp32 only, got {chosen}; choose zero1 or precision fp32", got=chosen
        )
    result: Dtype = chosen
    return result


def check_compile(job: spec.JobSpec, config: Mapping[str, Any], hardware: Hardware) -> None:
    """Refuse `torch_compile` where it would slow a run down, or where ZeRO-3's hooks stand in its way."""
    if not job.torch_compile:
        return
    if hardware.device == "cpu":
        raise errors.HardwareError("torch_compile: wanted a GPU, got a CPU, which it slows down", field="torch_compile")
    if not hardware.triton:
        raise errors.HardwareError(
            "torch_compile: wanted Triton, a C compiler and Python's headers, which it asks for; install them (Debian: "
            "gcc libc6-dev python3-dev), or leave torch_compile out",
            field="torch_compile",
        )
    if zero_stage(config) == 3 or job.shard_teacher:
        raise errors.EtdError(
            "torch_compile: wanted whole parameters, got ZeRO stage 3 or shard_teacher, which gather them module by "
            "module; leave out one of the two",
            field="torch_compile",
        )


def micro_batch(job: spec.JobSpec, *, world_size: int, device: Literal["cpu", "cuda"]) -> int:
    """Sequences per rank and forward pass: the spec's, else the largest divisor that keeps within a token budget."""
    per_rank, rest = divmod(job.batch_size, world_size)
    if rest:
        raise errors.EtdError(
            f"batch_size: {job.batch_size} sequences cannot be shared evenly by {world_size} ranks",
            field="batch_size",
            wanted=f"a multiple of {world_size}",
            got=job.batch_size,
        )
    if job.micro_batch_size is not None:
        if per_rank % job.micro_batch_size:
            raise errors.EtdError(
                f"micro_batch_size: wanted a divisor of {per_rank} (batch_size / ranks), got {job.micro_batch_size}",
                field="micro_batch_size",
                wanted=f"a divisor of {per_rank}",
                got=job.micro_batch_size,
            )
        return job.micro_batch_size
    most = max(1, TOKENS_PER_PASS[device] // job.seq_length)
    return max(n for n in range(1, min(most, per_rank) + 1) if per_rank % n == 0)


def complete(
    config: Mapping[str, Any], job: spec.JobSpec, *, precision: Dtype, micro: int, world_size: int, compiler: bool
) -> dict[str, Any]:
    """The whole config that DeepSpeed is started with: the file's keys and the spec's numbers."""
    adam: dict[str, Any] = {"lr": job.learning_rate, "betas": [0.9, 0.999], "eps": 1e-8}
    adam["weight_decay"] = job.weight_decay
    whole = {
        **config,
        "train_batch_size": job.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": job.batch_size // world_size // micro,
        "gradient_clipping": job.max_grad_norm,
        "steps_per_print": 2**62,
        "bf16": {**config.get("bf16", {}), "enabled": precision == "bf16"},
        "fp16": {**config.get("fp16", {}), "enabled": precision == "fp16"},
    }
    if not compiler:
        # DeepSpeed's own Adams are compiled on first use, on a CPU for minutes; torch's fused one needs no compiler
        adam |= {"torch_adam": True, "fused": True}
        whole["zero_force_ds_cpu_optimizer"] = False
    whole["optimizer"] = {"type": "AdamW", "params": adam}
    return whole


def _enabled(config: Mapping[str, Any], name: str) -> bool:
    return bool(config.get(name, {}).get("enabled", False))


def _find_auto(value: object, path: str = "") -> str | None:
    if value == "auto":
        return path
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if found := _find_auto(inner, f"{path}.{key}" if path else str(key)):
                return found
    return None
