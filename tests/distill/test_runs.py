"""Whole runs with real processes and the real DeepSpeed engine: resume, stop, fencing, bad input."""

import json
import os
import random
import shutil
import signal

import launching
import pytest
import torch
from launching import CONFIGS
from transformers import AutoModel

from etd_ds.contract import events, launch, rundir
from etd_ds.engine import checkpoint

pytestmark = pytest.mark.slow


def _train(run, cache, config="zero2", **options):
    return launching.train(run.root, cache=cache, config=CONFIGS / f"{config}.json", **options)


def _losses(run):
    """step -> loss, the newest attempt's word for steps that were done twice."""
    return {event.step: event.loss for event in events.read(run.events) if isinstance(event, events.Step)}


def _of(run, kind):
    return [event for event in events.read(run.events) if isinstance(event, kind)]


@pytest.fixture(scope="module")
def cache(small_world):
    return small_world[2]


@pytest.fixture(scope="module")
def whole(make_run, cache):
    """An uninterrupted run on 2 ranks."""
    run = make_run()
    assert _train(run, cache) == [launch.EXIT_DONE] * 2
    return run


def test_a_run_says_what_happens_and_ends_in_a_stock_student(whole):
    result = whole.read_result()
    assert set(result.files) == set(rundir.STUDENT_FILES)
    assert all(rundir.digest(whole.student / name) == digest for name, digest in result.files.items())
    assert [event.step for event in _of(whole, events.Validation)] == [0, 4, 8]
    assert [event.step for event in _of(whole, events.Checkpoint)] == [3, 6, 8]
    assert sorted(_losses(whole)) == list(range(1, 9))
    for event in _of(whole, events.Step):
        assert event.loss == pytest.approx(sum(event.terms.values()))
        assert event.terms.keys() == {"attention", "hidden"}
        assert event.grad_norm > 0
    assert _of(whole, events.Step)[-1].tokens == result.tokens
    assert _of(whole, events.End)[-1].outcome == "done"
    assert result.validation_after["loss"] < result.validation_before["loss"]

    model, loading = AutoModel.from_pretrained(
        whole.student, add_pooling_layer=False, output_loading_info=True, attn_implementation="sdpa"
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    before = AutoModel.from_pretrained(whole.init, add_pooling_layer=False).state_dict()
    assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items() if "query" in name)


def test_a_finished_run_is_left_alone(whole, cache):
    before = whole.events.read_bytes()
    assert _train(whole, cache) == [launch.EXIT_DONE] * 2
    assert whole.events.read_bytes() == before


def test_killed_at_any_moment_it_continues_to_the_bit(whole, make_run, cache):
    """SIGKILL between steps and at three places within a save, one after the other in one run."""
    run, draw = make_run(), random.Random(0)
    moments = [f"step {draw.randint(1, 3)}", "state 3", "rename 3", f"step {draw.randint(4, 6)}", "pointer 6"]
    for moment in moments:
        assert -signal.SIGKILL in _train(run, cache, fatal=moment), moment
        assert run.read_result() is None
    assert _train(run, cache) == [launch.EXIT_DONE] * 2
    assert _losses(run) == _losses(whole)
    assert [event.step for event in _of(run, events.Attempt)] == [0, 0, 0, 0, 3, 6]
    ended, uninterrupted = run.read_result(), whole.read_result()
    assert ended.files["model.safetensors"] == uninterrupted.files["model.safetensors"]
    assert ended.validation_before == uninterrupted.validation_before
    assert ended.validation_after == uninterrupted.validation_after
    assert ended.tokens == uninterrupted.tokens
    assert not list(run.checkpoints.glob(".*"))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole, make_run, cache):
    run = make_run()
    shutil.copytree(whole.checkpoints, run.checkpoints)
    for name in ("step-00000008/state.safetensors", "step-00000006/progress.json"):
        content = bytearray((run.checkpoints / name).read_bytes())
        content[len(content) // 2] ^= 1
        (run.checkpoints / name).write_bytes(content)
    assert _train(run, cache) == [launch.EXIT_DONE] * 2
    assert [event.step for event in _of(run, events.Attempt)] == [3]
    messages = [event.message for event in _of(run, events.Warn)]
    assert ["step-00000008" in messages[0], "step-00000006" in messages[1]] == [True, True]
    assert _losses(run) == {step: loss for step, loss in _losses(whole).items() if step > 3}


def test_stopped_runs_continue_on_other_ranks_and_other_zero_stages(plain, make_run, cache):
    """2 ranks → 1 → 2, ZeRO 1 → 3 → 0, each stopped by a signal: same batches, same losses up to rounding."""
    run = make_run(dropout=0.0)
    for config, world_size, number in (("zero1", 2, signal.SIGTERM), ("zero3", 1, signal.SIGUSR1)):
        ranks = launching.start(run.root, cache=cache, config=CONFIGS / f"{config}.json", world_size=world_size)
        _signal_after_a_step(run, ranks[-1], number)
        assert launching.finish(ranks) == [launch.EXIT_STOPPED] * world_size
        last = _of(run, events.End)[-1]
        assert last.outcome == "stopped"
        assert last.step == _of(run, events.Checkpoint)[-1].step
    assert _train(run, cache, "zero0") == [launch.EXIT_DONE] * 2
    for step, loss in _losses(plain).items():
        assert _losses(run)[step] == pytest.approx(loss, rel=1e-5)
    starts = [event.step for event in _of(run, events.Attempt)]
    assert starts == sorted(starts)


def _signal_after_a_step(run, process, number):
    """Signal one rank as soon as this attempt has said its first step."""
    begun = run.events.stat().st_size
    while not any(isinstance(event, events.Step) for event in events.read(run.events, begun)):
        process.join(0.02)
        assert process.exitcode is None
    os.kill(process.pid, number)


@pytest.fixture(scope="module")
def plain(make_run, cache):
    """An uninterrupted run on 1 rank without dropout, the yardstick of other configs."""
    run = make_run(dropout=0.0)
    assert _train(run, cache, "zero0", world_size=1) == [launch.EXIT_DONE]
    return run


@pytest.mark.parametrize(
    ("config", "tolerance"),
    [("zero1", 1e-5), ("zero2", 1e-5), ("zero3", 1e-5), ("zero2_offload", 1e-5), ("bf16", 0.03)],
)
def test_every_config_trains_alike_on_two_ranks(plain, make_run, cache, config, tolerance):
    run = make_run(dropout=0.0)
    assert _train(run, cache, config) == [launch.EXIT_DONE] * 2
    for step, loss in _losses(plain).items():
        assert _losses(run)[step] == pytest.approx(loss, rel=tolerance)
    assert _of(run, events.Attempt)[0].precision == ("bf16" if config == "bf16" else "fp32")


@pytest.mark.parametrize(
    ("changes", "config"),
    [({"objective": "minilm"}, "zero3"), ({"objective": "tinybert", "tinybert_compat": True}, "zero2")],
)
def test_other_objectives_do_not_depend_on_ranks_either(make_run, cache, changes, config):
    runs = [make_run(dropout=0.0, steps=3, **changes) for _ in range(2)]
    for world_size, run in enumerate(runs, 1):
        assert _train(run, cache, config, world_size=world_size) == [launch.EXIT_DONE] * world_size
    one, two = (_losses(run) for run in runs)
    assert two == pytest.approx(one, rel=1e-5)
    after = [run.read_result().validation_after for run in runs]
    assert after[1] == pytest.approx(after[0], rel=1e-5)
    state = checkpoint.open_whole(runs[1].checkpoints, 3).tensors()
    assert {name.partition(".")[0] for name in state} == {"parameter", "exp_avg", "exp_avg_sq"}
    last = f"parameter.bert.encoder.layer.{runs[1].read_job().layers - 1}.output.dense.weight"
    assert (last in state) == (changes["objective"] != "minilm")  # what does not learn stays as it was extracted


def test_fp16_skips_overflowing_updates_and_resumes_its_loss_scale(plain, make_run, cache, tmp_path):
    content = json.loads((CONFIGS / "fp16.json").read_text())
    content["fp16"] |= {"initial_scale_power": 17, "hysteresis": 1}
    config = tmp_path / "fp16_high.json"
    config.write_text(json.dumps(content))
    whole, run = make_run(dropout=0.0), make_run(dropout=0.0)
    options = {"cache": cache, "config": config, "world_size": 1}
    assert launching.train(whole.root, fatal="fp16", **options) == [launch.EXIT_DONE]
    scales = [event.loss_scale for event in _of(whole, events.Step)]
    assert scales[0] > scales[-1], "no update overflowed"
    assert _of(whole, events.Step)[0].grad_norm is None
    assert _of(whole, events.Step)[-1].grad_norm > 0
    ranks = launching.start(run.root, fatal="fp16", **options)
    _signal_after_a_step(run, ranks[0], signal.SIGTERM)
    assert launching.finish(ranks) == [launch.EXIT_STOPPED]
    assert launching.train(run.root, fatal="fp16", **options) == [launch.EXIT_DONE]
    assert _losses(run) == _losses(whole)
    assert [event.loss_scale for event in _of(run, events.Step)] == scales


def test_fp16_that_overflows_at_its_smallest_loss_scale_ends_with_one_clear_line(make_run, cache, tmp_path):
    content = json.loads((CONFIGS / "fp16.json").read_text())
    content["fp16"] |= {"initial_scale_power": 30, "min_loss_scale": 2**30, "hysteresis": 1}
    config = tmp_path / "fp16_stuck.json"
    config.write_text(json.dumps(content))
    run = make_run(dropout=0.0)
    codes = launching.train(run.root, fatal="fp16", cache=cache, config=config, world_size=1)
    assert codes == [launch.EXIT_BAD_INPUT]
    assert "overflow" in _of(run, events.End)[-1].message


def test_students_that_share_a_teacher_learn_as_each_would_alone(whole, make_run, cache):
    """To the bit, also when killed between the saves of the first and the second."""
    other = {"objective": "minilm", "layers": 3, "hidden": 12, "learning_rate": 3e-3, "dropout": 0.0}
    alone, together = make_run(**other), [make_run(), make_run(**other)]
    assert _train(alone, cache) == [launch.EXIT_DONE] * 2
    options = {"cache": cache, "config": CONFIGS / "zero2.json"}
    assert -signal.SIGKILL in launching.train([run.root for run in together], fatal="pointer 6", **options)
    assert launching.train([run.root for run in together], **options) == [launch.EXIT_DONE] * 2
    for run, yardstick in zip(together, (whole, alone), strict=True):
        assert [event.step for event in _of(run, events.Attempt)] == [0, 3]
        assert _losses(run) == _losses(yardstick)
        weights = "model.safetensors"
        assert run.read_result().files[weights] == yardstick.read_result().files[weights]


def test_runs_that_do_not_fit_together_are_refused(make_run, cache):
    runs = [make_run(), make_run(seq_length=16)]
    codes = launching.train([run.root for run in runs], cache=cache, config=CONFIGS / "zero2.json", world_size=1)
    assert codes == [launch.EXIT_BAD_INPUT]
    assert all("seq_length" in _of(run, events.End)[-1].message for run in runs)


def test_a_newer_attempt_ends_the_older_one(make_run, cache):
    run = make_run(steps=10_000, checkpoint_every=10_000, validate_every=10_000)
    ranks = launching.start(run.root, cache=cache, config=CONFIGS / "cpu.json", world_size=1)
    while not _losses(run):
        ranks[0].join(0.02)
    rundir.publish_json(run.attempt, {"token": "somebody else's"})
    assert launching.finish(ranks) == [launch.EXIT_BAD_INPUT]
    assert not run.checkpoints.exists()


@pytest.mark.parametrize(
    ("changes", "config", "code", "says"),
    [
        ({"precision": "fp16"}, "zero2", "hardware", "fp16"),
        ({"precision": "bf16"}, "zero0", "bad_deepspeed_config", "zero1"),
        ({"batch_size": 3, "micro_batch_size": 1}, "zero2", "bad_input", "3 sequences"),
        ({"corpus": "/nowhere/text.txt"}, "zero2", "bad_corpus", "/nowhere/text.txt"),
    ],
)
def test_bad_input_ends_all_ranks_with_one_clear_line(make_run, cache, changes, config, code, says):
    run = make_run(**changes)
    codes = _train(run, cache, config)
    assert codes[0] == launch.EXIT_BAD_INPUT
    assert codes[1] != launch.EXIT_DONE
    end = _of(run, events.End)[-1]
    assert (end.outcome, end.code) == ("failed", code)
    assert says in end.message


def test_pairs_of_sentences_train_too(plain, make_run, cache):
    run = make_run(layout="pairs", dropout=0.0)
    assert _train(run, cache, "cpu", world_size=1) == [launch.EXIT_DONE]
    packed, pairs = (_of(one, events.Attempt)[0].sequences for one in (plain, run))
    assert packed != pairs
    assert run.read_result().validation_after["loss"] < run.read_result().validation_before["loss"]


def test_a_teacher_that_changed_since_extraction_is_refused(make_run, cache):
    run = make_run()
    plan = run.read_plan()
    rundir.publish_json(run.plan, plan.model_copy(update={"teacher_sha256": "0" * 64}))
    assert _train(run, cache, "cpu", world_size=1) == [launch.EXIT_BAD_INPUT]
    end = _of(run, events.End)[-1]
    assert end.code == "bad_run_folder"
    assert "extract the student again" in end.message


def test_a_run_does_not_continue_on_another_corpus(small_world, make_run, cache, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(small_world[1].read_bytes())
    run = make_run(corpus=str(text))
    options = {"config": "cpu", "world_size": 1}
    assert _train(run, cache, **options, fatal="step 5") == [-signal.SIGKILL]
    kept = text.read_bytes()
    text.write_bytes(kept[: len(kept) // 2])
    assert _train(run, cache, **options) == [launch.EXIT_BAD_INPUT]
    end = _of(run, events.End)[-1]
    assert end.code == "bad_corpus"
    assert "changed since this run began" in end.message
    text.write_bytes(kept)
    assert _train(run, cache, **options) == [launch.EXIT_DONE]


def test_a_run_that_diverges_stops_and_says_where(make_run, cache):
    run = make_run(learning_rate=1.0, warmup_ratio=0.0, steps=200, max_grad_norm=1e9)
    assert _train(run, cache, "cpu", world_size=1) == [launch.EXIT_BAD_INPUT]
    end = _of(run, events.End)[-1]
    assert end.code == "training_failed"
    assert "learning_rate" in end.message


def test_json_of_the_attempt_names_the_process_to_signal(whole):
    claim = json.loads(whole.attempt.read_bytes())
    assert claim.keys() == {"token", "host", "pid"}


def test_a_silent_peer_is_given_up(make_run, cache):
    run = make_run(steps=10_000, checkpoint_every=10_000, validate_every=10_000)
    ranks = launching.start(run.root, cache=cache, config=CONFIGS / "cpu.json", fatal="impatient")
    _signal_after_a_step(run, ranks[1], signal.SIGSTOP)
    assert launching.finish(ranks)[0] == launch.EXIT_PEERS_LOST
    assert _of(run, events.End)[-1].outcome == "failed"


def test_a_rank_that_hangs_is_ended_by_the_watchdog(make_run, cache):
    run = make_run()
    assert _train(run, cache, "cpu", world_size=1, fatal="hang") == [1]
    assert run.read_result() is None
