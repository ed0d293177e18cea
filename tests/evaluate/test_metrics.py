"""Metrics beside scikit-learn, scipy, and the official SQuAD v1.1 script's definition."""

from __future__ import annotations

import math
import re
import string
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from etd_ds.evaluate import metrics

LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)
# few distinct values, so that ties are common
SCORES = st.lists(st.tuples(st.integers(-3, 3), st.floats(0, 5, width=16)), min_size=2, max_size=30)


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(LABELS)
def test_label_metrics_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    predicted, gold = zip(*pairs, strict=True)
    assert metrics.accuracy(predicted, gold) == pytest.approx(100 * sk.accuracy_score(gold, predicted))
    assert metrics.matthews(predicted, gold) == pytest.approx(100 * sk.matthews_corrcoef(gold, predicted), abs=1e-9)
    ones = [[int(x == 1) for x in side] for side in (gold, predicted)]
    assert metrics.f1(predicted, gold) == pytest.approx(100 * sk.f1_score(*ones, zero_division=0))


@given(SCORES)
def test_correlations_are_scipys(pairs: list[tuple[int, float]]) -> None:
    predicted, gold = zip(*pairs, strict=True)
    if len(set(predicted)) < 2 or len(set(gold)) < 2:
        assert metrics.pearson(predicted, gold) == metrics.spearman(predicted, gold) == 0.0
        return
    assert metrics.spearman(predicted, gold) == pytest.approx(100 * stats.spearmanr(predicted, gold)[0], abs=1e-6)
    assert metrics.pearson(predicted, gold) == pytest.approx(100 * stats.pearsonr(predicted, gold)[0], abs=1e-4)


def test_a_model_that_says_the_same_for_all_correlates_with_nothing() -> None:
    assert metrics.matthews([1, 1, 1], [0, 1, 1]) == 0.0
    assert metrics.pearson([0.1, 0.1, 0.1], [1.0, 2.0, 5.0]) == 0.0
    assert metrics.f1([0, 0], [0, 0]) == 0.0
    assert not math.isnan(metrics.spearman(np.zeros(3), [1.0, 2.0, 3.0]))


# ---------------------------------------------------------------- SQuAD, after its published definition


def official_normalize(s: str) -> str:
    lowered = s.lower()
    without_punctuation = "".join(ch for ch in lowered if ch not in set(string.punctuation))
    without_articles = re.sub(r"\b(a|an|the)\b", " ", without_punctuation)
    return " ".join(without_articles.split())


def official_f1(prediction: str, truth: str) -> float:
    p, t = official_normalize(prediction).split(), official_normalize(truth).split()
    same = sum((Counter(p) & Counter(t)).values())
    if same == 0:
        return 0
    precision, recall = same / len(p), same / len(t)
    return 2 * precision * recall / (precision + recall)


WORDS = st.text(alphabet="aAnthe .,'-\u2019\u2013é\u00a0İ1", max_size=14)


@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_answers_are_scored_as_the_official_script_does(rows: list[tuple[str, list[str]]]) -> None:
    predicted, gold = [p for p, _ in rows], [g for _, g in rows]
    f1 = np.mean([max(official_f1(p, g) for g in golds) for p, golds in rows])
    em = np.mean([max(official_normalize(p) == official_normalize(g) for g in golds) for p, golds in rows])
    assert metrics.answer_f1(predicted, gold) == pytest.approx(100 * f1)
    assert metrics.exact_match(predicted, gold) == pytest.approx(100 * em)


@pytest.mark.parametrize(
    ("predicted", "golds", "f1", "em"),
    [
        ("The Beatles!", ["beatles"], 100, 100),  # article, case and ASCII punctuation do not count
        ("", ["x"], 0, 0),  # an empty answer
        ("the", ["a"], 0, 100),  # nothing is left of either: equal, and no shared word (v1.1, not v2)
        ("", ["the"], 0, 100),
        ("Paris", ["London", "Paris, France"], 200 / 3, 0),  # the best of several
        ("New York", ["York New"], 100, 0),  # order counts for EM only
        ("rock’n’roll", ["rock'n'roll"], 0, 0),  # a typographic apostrophe is not ASCII punctuation
        ("1970–1980", ["1970-1980"], 0, 0),  # nor is an en dash
        ("twenty-one", ["twentyone"], 100, 100),  # a hyphen is
        ("an a the theory", ["theory"], 100, 100),
        ("a b b", ["b b b"], 80, 0),  # words count as often as they occur on both sides; `a` is an article
        ("Café", ["cafe"], 0, 0),  # accents count
    ],
)
def test_adversarial_answers(predicted: str, golds: list[str], f1: float, em: float) -> None:
    assert metrics.answer_f1([predicted], [golds]) == pytest.approx(f1)
    assert metrics.exact_match([predicted], [golds]) == pytest.approx(em)
