"""The reader's losses beside their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from etd_ds.evaluate import finetune, reader


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


def test_the_rate_rises_over_a_tenth_and_falls_to_its_last_step() -> None:
    rates = [finetune.rate(step, steps=40, peak=1.0) for step in range(1, 41)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 0.03
    assert finetune.rate(1, steps=1, peak=1.0) == 1.0
