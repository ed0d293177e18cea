"""`deepspeed --hostfile` over ssh and pdsh: two machines, a cut link, and on from the checkpoint."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import hosts
import pytest

from etd_ds.contract import events, launch
from etd_ds.engine import ranks

MISSING = hosts.missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

TRAINER = Path(__file__).parent / "impatient_train.py"


@pytest.fixture
def two_hosts(tmp_path):
    made = hosts.Hosts(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_a_cut_link_ends_the_run_and_the_same_command_continues(
    two_hosts, make_run, small_world, tmp_path, monkeypatch
):
    run = make_run(steps=8, checkpoint_every=3, validation_sequences=0, nodes=2, gpus=1, deepspeed="cpu")
    (tmp_path / "hosts.txt").write_text("".join(f"{name} slots=1\n" for name in hosts.NAMES))
    # pdsh hands on little of the environment: the rest stands in this file of the folder, or of the home
    variables = launch.train_env(cpu=True) | {"CUDA_VISIBLE_DEVICES": "none"}
    (tmp_path / ".deepspeed_env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    monkeypatch.chdir(tmp_path)
    argv = launch.train_argv(run, run.read_job(), cache=small_world[2], hostfile=tmp_path / "hosts.txt")
    argv[argv.index(str(launch.REPOSITORY / "etd_ds" / "train.py"))] = str(TRAINER)

    def start():
        return two_hosts.on(0, *argv, stdout=run.log.open("ab"), stderr=subprocess.STDOUT)

    launcher = start()
    until(lambda: 4 in steps(run), launcher, run)
    assert [len(two_hosts.processes(number, TRAINER)) for number in (0, 1)] == [1, 1]
    two_hosts.link("down")
    cut = time.monotonic()
    (run.root / "go").touch()
    code = launcher.wait(180)
    assert code not in (launch.EXIT_DONE, launch.EXIT_STOPPED), run.log.read_text()[-3000:]
    until(lambda: not any(two_hosts.processes(number, TRAINER) for number in (0, 1)))
    (end,) = (event for event in events.read(run.events) if isinstance(event, events.End))
    assert (end.outcome, end.code) == ("failed", "peers_lost"), end
    assert run.read_result() is None
    print(f"exit code {code}; after {time.monotonic() - cut:.0f} s nothing was left")

    two_hosts.link("up")
    assert start().wait(180) == launch.EXIT_DONE, run.log.read_text()[-3000:]
    first, second = (event for event in events.read(run.events) if isinstance(event, events.Attempt))
    assert (first.step, second.step, second.world_size) == (0, 3, 2)
    assert run.read_result().steps == 8


def test_a_silent_peer_is_given_up_within_a_minute():
    assert ranks.TIMEOUT.total_seconds() <= 55


def steps(run):
    return (
        [event.step for event in events.read(run.events) if isinstance(event, events.Step)]
        if run.events.exists()
        else []
    )


def until(condition, process=None, run=None):
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, run.log.read_text()[-3000:]
        time.sleep(0.05)
