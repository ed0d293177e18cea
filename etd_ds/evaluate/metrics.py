"""The paper's metrics, in per cent [ETD §4.1]: pure functions of what was predicted and what is right."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

Numbers = Sequence[float] | np.ndarray
Scores = dict[str, dict[str, float]]
"""Evaluation -> metric -> per cent."""


def accuracy(predicted: Numbers, gold: Numbers) -> float:
    """Share of equal labels."""
    return 100 * float(np.mean(np.asarray(predicted) == np.asarray(gold)))


def f1(predicted: Numbers, gold: Numbers) -> float:
    """Harmonic mean of precision and recall of class 1; 0 when class 1 is neither predicted nor there."""
    p, g = np.asarray(predicted) == 1, np.asarray(gold) == 1
    either = float(p.sum() + g.sum())
    return 100 * 2 * float((p & g).sum()) / either if either else 0.0


def matthews(predicted: Numbers, gold: Numbers) -> float:
    """Matthews' correlation of labels, any number of classes; 0 when one side has a single class."""
    classes, codes = np.unique(np.concatenate([predicted, gold]), return_inverse=True)
    p, g = np.split(codes, 2)
    table = np.zeros((len(classes), len(classes)), dtype=np.float64)
    np.add.at(table, (g, p), 1)
    n, right = table.sum(), table.trace()
    by_gold, by_predicted = table.sum(1), table.sum(0)
    spread = (n * n - by_predicted @ by_predicted) * (n * n - by_gold @ by_gold)
    return 100 * float((right * n - by_gold @ by_predicted) / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(predicted: Numbers, gold: Numbers) -> float:
    """Linear correlation; 0, where it is not defined, when one side is constant."""
    p, g = (np.asarray(x, dtype=np.float64) - np.mean(x) for x in (predicted, gold))
    # a constant's mean is rounded, which leaves dust instead of zeros
    if np.ptp(predicted) == 0 or np.ptp(gold) == 0:
        return 0.0
    return 100 * float(p @ g / np.sqrt((p @ p) * (g @ g)))


def spearman(predicted: Numbers, gold: Numbers) -> float:
    """Pearson's correlation of ranks, ties sharing their mean rank."""
    return pearson(_ranks(predicted), _ranks(gold))


def _ranks(values: Numbers) -> np.ndarray:
    _, codes, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: np.ndarray = last - (counts - 1) / 2
    return means[codes]


# ---------------------------------------------------------------- answers, as the official SQuAD v1.1 script has them

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII only, as in the official script


def normalize(answer: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(predicted: Sequence[str], gold: Sequence[Sequence[str]]) -> float:
    """Share of answers that equal one of theirs after `normalize`."""
    return _over_golds(predicted, gold, lambda p, g: float(normalize(p) == normalize(g)))


def answer_f1(predicted: Sequence[str], gold: Sequence[Sequence[str]]) -> float:
    """Mean over questions of the best word-overlap F1 with one of the right answers."""
    return _over_golds(predicted, gold, _word_f1)


def _word_f1(predicted: str, gold: str) -> float:
    p, g = normalize(predicted).split(), normalize(gold).split()
    shared = (Counter(p) & Counter(g)).total()
    return 2 * shared / (len(p) + len(g)) if shared else 0.0


def _over_golds(predicted: Sequence[str], gold: Sequence[Sequence[str]], score: Callable[[str, str], float]) -> float:
    best = [max(score(p, g) for g in golds) for p, golds in zip(predicted, gold, strict=True)]
    return 100 * float(np.mean(best))


LABEL_METRICS: dict[str, Callable[[Numbers, Numbers], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
ANSWER_METRICS: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], float]] = {
    "f1": answer_f1,
    "em": exact_match,
}
