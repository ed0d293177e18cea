"""What may stand in a DeepSpeed config, and what comes from the spec."""

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etd_ds.contract import errors, flags
from etd_ds.engine import config, runtime

CONFIGS = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))
CPU = config.Hardware("cpu", bf16=True, fp16=False)
H200 = config.Hardware("cuda", bf16=True, fp16=True)
V100 = config.Hardware("cuda", bf16=False, fp16=True)
OLD_GPU = config.Hardware("cuda", bf16=False, fp16=False)


def _job(**fields):
    return flags.parse({"layers": 4, "hidden": 384, **fields})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_accepted(path):
    content = config.read(path)
    whole = config.complete(content, _job(), precision="fp32", micro=4, world_size=2, compiler=True)
    assert content.items() <= {**whole, **content}.items()
    assert whole["train_batch_size"] == 4 * 2 * whole["gradient_accumulation_steps"]


@pytest.mark.parametrize("compiler", [True, False])
def test_adam_is_torchs_own_where_deepspeed_cannot_compile(compiler):
    whole = config.complete(ZERO1, _job(), precision="fp32", micro=4, world_size=2, compiler=compiler)
    assert whole["optimizer"]["params"].get("torch_adam", False) is not compiler
    assert whole["optimizer"]["params"]["lr"] == _job().learning_rate


@pytest.mark.parametrize("key", [*config.SPEC_OWNED, *sorted(config.REMOVED), "zero_optimisation"])
def test_keys_that_are_not_its_own_are_refused_by_name(tmp_path, key):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}, key: 1}))
    with pytest.raises(errors.ConfigError, match=key) as raised:
        config.read(path)
    if key in config.SPEC_OWNED:
        assert config.SPEC_OWNED[key] in str(raised.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "no JSON object"),
        ('{"zero_optimization": 2}', "zero_optimization wanted an object, got 2"),
        ('{"bf16": true}', "bf16 wanted an object, got True"),
        ('{"fp16": null}', "fp16 wanted an object, got None"),
        ('{"fp16": {"enabled": true, "auto_cast": true}}', "fp16.auto_cast wanted false"),
        ('{"zero_optimization": {"stage": 4}}', "0, 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}', "zero_optimization.reduce_bucket_size"),
        ('{"zero_optimization": {"stage": true}}', "got True"),
        ('{"bf16": {"enabled": "no"}}', "bf16.enabled wanted true or false, got 'no'"),
        ('{"fp16": {"enabled": true, "loss_scale": 128}}', "loss_scale wanted 0"),
        ('{"bf16": {"enabled": true}, "fp16": {"enabled": true}}', "both"),
    ],
)
def test_what_deepspeed_would_choke_on_is_refused(tmp_path, text, says):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(errors.ConfigError, match=says):
        config.read(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"zero_optimization": {"stage": 2, "reduce_bucket": 5}}, "zero_optimization.reduce_bucket: Extra inputs"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "disk"}}}, "offload_param.device"),
        ({"fp16": {"enabled": True, "window": 3}}, "fp16.window"),
    ],
)
def test_what_deepspeed_does_not_know_is_refused_by_its_own_models(content, says):
    config.check(content, "mine.json")
    with pytest.raises(errors.ConfigError, match=says):
        runtime.check(content)


def test_a_missing_config_names_those_that_exist():
    with pytest.raises(errors.ConfigError, match="zero2"):
        config.read(CONFIGS[0].with_name("zero9.json"))


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        config.read(tmp_path)


ZERO1 = {"zero_optimization": {"stage": 1}}
FP16 = {**ZERO1, "fp16": {"enabled": True}}
BF16 = {**ZERO1, "bf16": {"enabled": True}}


@pytest.mark.parametrize(
    ("asked", "content", "hardware", "wanted"),
    [
        ("auto", ZERO1, CPU, "fp32"),
        ("auto", ZERO1, H200, "bf16"),
        ("auto", ZERO1, V100, "fp16"),
        ("auto", ZERO1, OLD_GPU, "fp32"),
        ("auto", FP16, H200, "fp16"),
        ("fp32", ZERO1, H200, "fp32"),
        ("bf16", ZERO1, CPU, "bf16"),
        ("fp16", ZERO1, CPU, errors.HardwareError),
        ("auto", FP16, CPU, errors.HardwareError),
        ("bf16", ZERO1, V100, errors.HardwareError),
        ("fp32", BF16, H200, errors.ConfigError),
        ("auto", {}, H200, errors.ConfigError),
        ("fp32", {}, H200, "fp32"),
    ],
)
def test_precision_is_what_the_hardware_can_or_a_clear_refusal(asked, content, hardware, wanted):
    if isinstance(wanted, str):
        assert config.precision(asked, content, hardware) == wanted
    else:
        with pytest.raises(wanted):
            config.precision(asked, content, hardware)


ZERO3 = {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize(
    ("fields", "content", "hardware", "refused"),
    [
        ({}, ZERO1, H200, False),
        ({}, ZERO1, CPU, True),
        ({}, ZERO1, dataclasses.replace(H200, triton=False), True),
        ({}, ZERO3, H200, True),
        ({"shard_teacher": True}, ZERO1, H200, True),
    ],
)
def test_compiling_is_refused_where_it_cannot_help(fields, content, hardware, refused):
    config.check_compile(_job(**fields), content, hardware)
    job = _job(torch_compile=True, **fields)
    with pytest.raises(errors.EtdError) if refused else contextlib.nullcontext() as raised:
        config.check_compile(job, content, hardware)
    assert not refused or raised.value.field == "torch_compile"


@given(batch=st.integers(1, 512), world=st.sampled_from([1, 2, 4, 8]), seq=st.integers(8, 512), device=st.just("cpu"))
def test_a_chosen_micro_batch_divides_the_ranks_share_and_keeps_the_budget(batch, world, seq, device):
    job = _job(batch_size=batch * world, seq_length=seq)
    micro = config.micro_batch(job, world_size=world, device=device)
    assert batch % micro == 0
    assert micro == 1 or micro * seq <= config.TOKENS_PER_PASS[device]


@pytest.mark.parametrize(
    ("fields", "world", "field"),
    [({"batch_size": 6}, 4, "batch_size"), ({"batch_size": 8, "micro_batch_size": 4}, 4, "micro_batch_size")],
)
def test_a_batch_that_the_ranks_cannot_share_is_refused(fields, world, field):
    with pytest.raises(errors.EtdError) as raised:
        config.micro_batch(_job(**fields), world_size=world, device="cpu")
    assert raised.value.field == field
