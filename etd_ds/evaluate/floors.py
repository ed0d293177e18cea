"""What a task yields without any reader: the commonest answer, and a linear model of its words."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from etd_ds.evaluate import metrics
from etd_ds.evaluate.examples import Labelled, Material, Question
from etd_ds.evaluate.metrics import Scores
from etd_ds.evaluate.tasks import Task

_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_STEPS = 50


def floors(task: Task, material: Material) -> dict[str, Scores]:
    """`majority` and `bag_of_words`: evaluation -> metric -> per cent. Nothing is tuned, nothing is random."""
    if task.kind == "span":
        return {"majority": _spans(task, material, overlap=False), "bag_of_words": _spans(task, material, overlap=True)}
    train = cast("Sequence[Labelled]", material.train)
    labels = np.array([row.label for row in train])
    usual = float(labels.mean()) if task.kind == "regression" else float(np.bincount(labels.astype(int)).argmax())
    words = _Words(train)
    weights = words.fit(task, train, labels)
    found: dict[str, Scores] = {"majority": {}, "bag_of_words": {}}
    for name, rows in material.evaluations.items():
        examples = cast("Sequence[Labelled]", rows)
        gold = [row.label for row in examples]
        outputs = words.outputs(examples, weights).numpy()
        predicted = outputs[:, 0] if task.kind == "regression" else outputs.argmax(1)
        for floor, guess in (("majority", np.full(len(gold), usual)), ("bag_of_words", predicted)):
            found[floor][name] = {metric: metrics.LABEL_METRICS[metric](guess, gold) for metric in task.metrics}
    return found


# ---------------------------------------------------------------- labels from words


class _Words:
    """Words and word pairs that occur in two training examples or more, as binary features of each text."""

    def __init__(self, train: Sequence[Labelled]) -> None:
        counts = Counter(itertools.chain.from_iterable(map(_features, train)))
        kept = [word for word, count in counts.items() if count > 1]
        self.columns = {word: i for i, word in enumerate(kept, 1)}  # 0 is the bias

    def fit(self, task: Task, train: Sequence[Labelled], labels: np.ndarray) -> Tensor:
        """(features, outputs): summed loss plus half the squared weights, by L-BFGS from zero."""
        weights = torch.zeros(len(self.columns) + 1, task.outputs, requires_grad=True)
        bags, targets = self._bags(train), torch.from_numpy(labels)
        optimizer = torch.optim.LBFGS([weights], max_iter=_STEPS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            outputs = F.embedding_bag(bags[0], weights, bags[1], mode="sum")
            if task.kind == "regression":
                loss = F.mse_loss(outputs[:, 0], targets.float(), reduction="sum")
            else:
                loss = F.cross_entropy(outputs, targets.long(), reduction="sum")
            loss = (loss + weights[1:].square().sum() / 2) / len(targets)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return weights.detach()

    def outputs(self, examples: Sequence[Labelled], weights: Tensor) -> Tensor:
        """(examples, outputs)."""
        bags = self._bags(examples)
        return F.embedding_bag(bags[0], weights, bags[1], mode="sum")

    def _bags(self, examples: Sequence[Labelled]) -> tuple[Tensor, Tensor]:
        rows = [[0, *(self.columns[word] for word in _features(row) if word in self.columns)] for row in examples]
        starts = np.cumsum([0, *map(len, rows[:-1])])
        return torch.tensor(list(itertools.chain.from_iterable(rows))), torch.from_numpy(starts)


def _features(example: Labelled) -> Iterable[str]:
    first = _words(example.a)
    if example.b is None:
        return dict.fromkeys([*first, *map(" ".join, itertools.pairwise(first))])
    second = _words(example.b)
    shared = set(first) & set(second)
    # how much of the shorter text is in the other, in tenths, beside the words themselves
    tenths = 10 * len(shared) // max(1, min(len(set(first)), len(set(second))))
    marked = [f"a {word}" for word in first] + [f"b {word}" for word in second] + [f"ab {word}" for word in shared]
    return dict.fromkeys([*marked, f"overlap {tenths}"])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


# ---------------------------------------------------------------- spans from words


def _spans(task: Task, material: Material, *, overlap: bool) -> Scores:
    """The first words, as many as answers usually have, of the context or of the sentence most like the question."""
    train = cast("Sequence[Question]", material.train)
    length = round(median(len(question.answers[0].text.split()) for question in train))
    documents = Counter(itertools.chain.from_iterable(set(_words(question.context)) for question in train))
    scores: Scores = {}
    for name, rows in material.evaluations.items():
        questions = cast("Sequence[Question]", rows)
        guesses = []
        for question in questions:
            sentence = _likest(question, documents, len(train)) if overlap else question.context
            guesses.append(" ".join(sentence.split()[:length]))
        gold = [[answer.text for answer in question.answers] for question in questions]
        scores[name] = {metric: metrics.ANSWER_METRICS[metric](guesses, gold) for metric in task.metrics}
    return scores


def _likest(question: Question, documents: Counter[str], total: int) -> str:
    """The sentence that shares the rarest words with the question; the first of equals."""
    asked = set(_words(question.question))

    def shared(sentence: str) -> float:
        return sum(float(np.log((2 + total) / (1 + documents[word]))) for word in asked & set(_words(sentence)))

    return max(_SENTENCE.split(question.context), key=shared)
