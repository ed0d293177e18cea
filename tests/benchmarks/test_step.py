"""The step benchmark's gate: all contenders compute the same step, and one that does not is caught."""

import pytest

from benchmarks import step

TINY = step.Size((2, 48), (1, 24), 60)


@pytest.mark.parametrize("objective", ["last_layer", "minilm"])
@pytest.mark.parametrize("fill", [1.0, 0.5])
def test_all_contenders_pass_the_gate_and_a_wrong_one_does_not(objective, fill):
    case = step.make_case(TINY, step.Shape(3, 24, fill), objective)
    steps = step.contenders(case, objective)
    assert step.gate(case, objective, steps) == []

    def wrong():
        loss = steps[step.OURS]()
        next(p for p in case.distiller.parameters() if p.grad is not None).grad.mul_(1.01)
        return loss

    assert len(step.gate(case, objective, steps | {"wrong": wrong})) == 1


def test_students_in_a_crowd_get_the_gradients_that_they_get_alone():
    case = step.make_case(TINY, step.Shape(3, 24, 1.0), "last_layer")
    crowd = [step.copy.deepcopy(case.distiller) for _ in range(2)]
    step.ours(case)
    step.ours(case, crowd)
    for student in crowd:
        for mine, alone in zip(student.parameters(), case.distiller.parameters(), strict=True):
            assert (mine.grad is None) == (alone.grad is None)
            assert mine.grad is None or mine.grad.equal(alone.grad)
