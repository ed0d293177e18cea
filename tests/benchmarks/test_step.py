"""The step benchmark's gate: all contenders compute the same step, and one that does not is caught."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cases, measure, peers, step

TINY = cases.Size((2, 48), (1, 24), 60)


@pytest.mark.parametrize("objective", ["last_layer", "minilm"])
@pytest.mark.parametrize("fill", [1.0, 0.5])
def test_all_contenders_pass_the_gate_and_a_wrong_one_does_not(objective, fill):
    case = cases.make_case(TINY, cases.Shape(3, 24, fill), objective)
    steps, wanted = step.contenders(case, objective), step.truth(case, objective)
    assert step.gate(case, steps, wanted) == []

    def wrong():
        loss = steps[step.OURS]()
        next(p for p in case.distiller.parameters() if p.grad is not None).grad.mul_(1.01)
        return loss

    assert len(step.gate(case, steps | {"wrong": wrong}, wanted)) == 1


def test_bf16_is_near_the_truth_and_not_exact():
    case = cases.make_case(TINY, cases.Shape(3, 24, 0.5), "last_layer")
    half, wanted = case.to(torch.bfloat16), step.truth(case, "last_layer")
    for contender in step.in_bf16(half, "last_layer", gpu=False).values():
        loss, gradient = step.errors(half, contender, wanted)
        assert step.LOSS_GATE < loss < 0.05
        assert step.GRADIENT_GATE < gradient < 0.5


def test_students_in_a_crowd_get_the_gradients_that_they_get_alone():
    case = cases.make_case(TINY, cases.Shape(3, 24, 1.0), "last_layer")
    crowd = [copy.deepcopy(case.distiller) for _ in range(2)]
    step.ours(case, [case.distiller])
    step.ours(case, crowd)
    for student in crowd:
        for mine, alone in zip(student.parameters(), case.distiller.parameters(), strict=True):
            assert (mine.grad is None) == (alone.grad is None)
            assert mine.grad is None or mine.grad.equal(alone.grad)


def test_the_arithmetic_is_what_torch_counts():
    case = cases.make_case(TINY, cases.Shape(2, 16, 1.0), "last_layer")
    pairs = sum(length**2 for length in case.packed.segments.lengths)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        peers._published(case.teacher, case.padded)
    wanted = case.distiller.objective.teacher
    assert cases._encoder_flops(case.teacher, wanted, case.tokens, pairs) == counter.get_total_flops()


def test_a_row_is_printed_for_every_contender(capsys):
    case = cases.make_case(TINY, cases.Shape(2, 16, 1.0), "last_layer")
    steps = step.contenders(case, "last_layer")
    step.report("title", case, measure.interleaved(steps, 1), 1e9, {})
    printed = capsys.readouterr().out
    assert all(name in printed for name in steps)


def test_who_does_not_fit_into_memory_has_no_row(capsys):
    def too_much():
        raise torch.OutOfMemoryError

    case = cases.make_case(TINY, cases.Shape(2, 16, 1.0), "last_layer")
    steps = step.contenders(case, "last_layer") | {step.BASELINE: too_much}
    step.report("title", case, measure.interleaved(steps, 1), 1e9, {})
    printed = capsys.readouterr().out
    assert step.OURS in printed
    assert step.BASELINE not in printed


def test_a_gpu_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    command = [sys.executable, "-m", "benchmarks.step", "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
