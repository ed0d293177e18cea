"""Long contexts as overlapping windows, and the best valid span over all of them [SQuAD v1.1, BERT's reader]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers

from etd_ds.data import tokenize
from etd_ds.evaluate.encoding import Row
from etd_ds.evaluate.examples import Answer, Question
from etd_ds.evaluate.tasks import Protocol


@dataclass(frozen=True)
class Window:
    """[CLS] question [SEP] a part of the context [SEP]. C context tokens stand at `first` … `first + C - 1`."""

    row: Row
    first: int
    offsets_C2: np.ndarray
    """Characters [start, stop) of the context that each of its tokens stands for."""
    widest_C: np.ndarray
    """Whether no other window shows more of the context on the poorer side of that token: a start must be so."""

    def target(self, answer: Answer) -> tuple[int, int]:
        """Places of the answer's first and last token, or of [CLS] twice if this window has not the whole answer."""
        starts, stops = self.offsets_C2.T if len(self.offsets_C2) else (np.empty(0), np.empty(0))
        inside = np.flatnonzero((stops > answer.start) & (starts < answer.start + len(answer.text)))
        if not len(inside):
            return 0, 0
        whole = starts[inside[0]] <= answer.start and stops[inside[-1]] >= answer.start + len(answer.text)
        return (self.first + int(inside[0]), self.first + int(inside[-1])) if whole else (0, 0)


def windows(tokenizer: tokenizers.Tokenizer, questions: Sequence[Question], protocol: Protocol) -> list[list[Window]]:
    """The windows of each question, in the order of the context; at least one each."""
    special = tokenize.special(tokenizer)
    asked = tokenizer.encode_batch([q.question for q in questions], add_special_tokens=False)
    # a paragraph is asked about several times and tokenized once
    contexts = list(dict.fromkeys(q.context for q in questions))
    encoded = dict(zip(contexts, tokenizer.encode_batch(contexts, add_special_tokens=False), strict=True))
    found = []
    for question, ask in zip(questions, asked, strict=True):
        context = encoded[question.context]
        head = [special.cls, *ask.ids[: protocol.max_question], special.sep]
        room = protocol.max_tokens - len(head) - 1
        spans = list(_steps(len(context.ids), room, min(protocol.stride, room)))
        offsets = np.asarray(context.offsets, dtype=np.int64).reshape(-1, 2)
        widest = _widest(len(context.ids), spans)
        rows = []
        for number, (start, stop) in enumerate(spans):
            row = Row.of(head, [*context.ids[start:stop], special.sep])
            rows.append(Window(row, len(head), offsets[start:stop], widest[number, start:stop]))
        found.append(rows)
    return found


def _steps(tokens: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    start = 0
    while True:
        stop = min(start + room, tokens)
        yield start, stop
        if stop == tokens:
            return
        start += stride


def _widest(tokens: int, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """(windows, tokens): where a token has the most context on its poorer side; the first such window wins."""
    context = np.full((len(spans), tokens), -1.0)
    for number, (start, stop) in enumerate(spans):
        place = np.arange(start, stop)
        # the second term breaks ties in favour of longer windows, as BERT's reader does
        context[number, start:stop] = np.minimum(place - start, stop - 1 - place) + 0.01 * (stop - start)
    best: np.ndarray = context.argmax(0) if tokens else np.empty(0, dtype=np.int64)
    shown: np.ndarray = np.arange(len(spans))[:, None] == best
    return shown


def best_answer(question: Question, parts: Sequence[Window], logits: Sequence[np.ndarray], max_answer: int) -> str:
    """Text of the span with the highest start + end logit that is valid: ordered, not too long, in the context.

    `logits` holds, for each window, (S, 2). Exact over all spans; an empty context gives an empty answer.
    """
    best, text = -np.inf, ""
    for window, logits_S2 in zip(parts, logits, strict=True):
        count = len(window.offsets_C2)
        start_C, end_C = logits_S2[window.first : window.first + count].T
        start_C = np.where(window.widest_C, start_C, -np.inf)
        for length in range(min(max_answer, count)):
            sums = start_C[: count - length] + end_C[length:]
            place = int(sums.argmax())
            if sums[place] > best:
                best = float(sums[place])
                begin, stop = window.offsets_C2[place, 0], window.offsets_C2[place + length, 1]
                text = question.context[begin:stop]
    return text
