"""The reader's losses beside their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from etd_ds.evaluate import reader


def test_losses_are_means_over_the_batch() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    wanted = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert reader.loss("classification", logits, torch.tensor([0.0, 0.0])).item() == pytest.approx(wanted)
    scores = torch.tensor([[1.0], [4.0]])
    assert reader.loss("regression", scores, torch.tensor([2.0, 4.0])).item() == pytest.approx(0.5)


def test_a_span_costs_the_mean_of_its_start_and_its_end_and_padding_costs_nothing() -> None:
    logits_BS2 = torch.zeros(1, 4, 2)
    logits_BS2[0, 3] = float("-inf")
    assert reader.loss("span", logits_BS2, torch.tensor([[1, 2]])).item() == pytest.approx(math.log(3))
    logits_BS2[0, 1, 0] = 100.0
    assert reader.loss("span", logits_BS2, torch.tensor([[1, 2]])).item() == pytest.approx(math.log(3) / 2)
