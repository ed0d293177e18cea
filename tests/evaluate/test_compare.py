"""Likeness of embeddings depends on directions only, and tells copies from strangers."""

import pytest
import torch

from etd_ds.contract import errors, teachers
from etd_ds.evaluate import compare


def rotation(size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


def test_a_rotated_scaled_widened_copy_is_a_perfect_copy():
    generator = torch.Generator().manual_seed(0)
    a_XH = torch.randn(40, 16, generator=generator, dtype=torch.float64)
    wide_XG = torch.cat([3.0 * a_XH @ rotation(16, generator), torch.zeros(40, 8)], dim=-1)
    assert compare.alike(a_XH, wide_XG) == pytest.approx((1.0, 1.0))


def test_strangers_are_near_chance():
    generator = torch.Generator().manual_seed(0)
    a_XH, b_XH = torch.randn(2, 300, 16, generator=generator)
    correlation, neighbours = compare.alike(a_XH, b_XH)
    assert abs(correlation) < 0.05
    assert neighbours < 0.05


def test_likeness_falls_as_noise_rises():
    generator = torch.Generator().manual_seed(0)
    a_XH, noise_XH = torch.randn(2, 100, 32, generator=generator)
    found = [compare.alike(a_XH, a_XH + level * noise_XH)[0] for level in (0.0, 0.5, 2.0)]
    assert found == sorted(found, reverse=True)


def test_two_sentences_are_too_few():
    with pytest.raises(errors.EtdError, match="at least 3"):
        compare.compare(teachers.embedded_folder(), teachers.embedded_folder(), ["a", "b"])


@pytest.mark.slow
def test_the_teacher_is_its_own_perfect_student():
    folder = teachers.embedded_folder()
    found = compare.compare(folder, folder, ["A cat sat.", "Stocks fell.", "It rains.", "A dog ran."], progress=False)
    assert (found.correlation, found.neighbours) == pytest.approx((1.0, 1.0))
    assert found.teacher.parameters == found.student.parameters == 22_713_216
    assert found.teacher.milliseconds > 0
