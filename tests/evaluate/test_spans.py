"""Windows over long contexts, and the best valid span over them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from etd_ds.contract import teachers
from etd_ds.data import tokenize
from etd_ds.evaluate import spans, tasks
from etd_ds.evaluate.examples import Answer, Question

PROTOCOL = replace(tasks.SQUAD, max_tokens=32, stride=8, max_question=8, max_answer=5)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenize.open_tokenizer(teachers.embedded_folder())


def asked(context: str, answer: str = "", question: str = "Who ran?") -> Question:
    return Question(question, context, (Answer(answer, context.index(answer)),))


def flat(parts: list[spans.Window]) -> list[np.ndarray]:
    return [np.zeros((len(part.row.ids_S), 2)) for part in parts]


def test_every_token_of_the_context_is_shown_and_just_one_window_may_start_at_it(tokenizer) -> None:
    context = " ".join(f"w{i}" for i in range(60))
    (parts,) = spans.windows(tokenizer, [asked(context)], PROTOCOL)
    tokens = tokenizer.encode(context, add_special_tokens=False).offsets
    shown = [
        tuple(offset) for part in parts for offset, widest in zip(part.offsets_C2, part.widest_C, strict=True) if widest
    ]
    assert sorted(shown) == tokens
    assert max(len(part.row.ids_S) for part in parts) == PROTOCOL.max_tokens
    assert len(parts) > 3
    steps = {int(b.offsets_C2[0, 0] - a.offsets_C2[0, 0]) > 0 for a, b in itertools.pairwise(parts)}
    assert steps == {True}


def test_targets_point_at_the_answer_in_each_window_that_has_it_whole(tokenizer) -> None:
    context = " ".join(f"word{i}" for i in range(30)) + " Zoë Kravitz-O’Neill " + "end " * 20
    question = asked(context, "Zoë Kravitz-O’Neill")
    (parts,) = spans.windows(tokenizer, [question], PROTOCOL)
    found = 0
    for part in parts:
        start, end = part.target(question.answers[0])
        if (start, end) != (0, 0):
            begin, stop = part.offsets_C2[start - part.first, 0], part.offsets_C2[end - part.first, 1]
            assert context[begin:stop] == "Zoë Kravitz-O’Neill"
            found += 1
    assert 0 < found < len(parts)


def test_the_target_comes_back_as_the_answer(tokenizer) -> None:
    """Round trip: logits that shout the target give the gold text, accents and punctuation kept."""
    context = "In 1999, Renée “Zell” Weger (born 1969) ran. " * 3 + "Then Fitz-Hugh, Jr. ran too."
    for answer in ("Renée “Zell” Weger", "1969", "Fitz-Hugh, Jr", "1999"):
        question = asked(context, answer)
        (parts,) = spans.windows(tokenizer, [question], replace(PROTOCOL, max_answer=12))
        logits = flat(parts)
        for part, values in zip(parts, logits, strict=True):
            start, end = part.target(question.answers[0])
            values[start, 0] += 9
            values[end, 1] += 9
        assert spans.best_answer(question, parts, logits, 12) == answer


def test_no_invalid_span_wins(tokenizer) -> None:
    context = "one two three four five six seven eight nine ten"
    question = asked(context)
    (parts,) = spans.windows(tokenizer, [question], PROTOCOL)
    first = parts[0].first

    def answer(*loud: tuple[int, int, float]) -> str:
        (logits,) = flat(parts)
        logits[first + 4, 0], logits[first + 5, 1] = 7, 7
        for start, end, value in loud:
            logits[start, 0] = logits[end, 1] = value
        return spans.best_answer(question, parts, [logits], 5)

    assert answer() == "five six"
    assert answer((0, first - 1, 50)) == "five six"  # [CLS] and [SEP] are not in the context
    assert answer((first + 6, first + 2, 9)) == "five six"  # ends before it starts
    assert answer((first, first + 9, 9)) == "five six"  # too long
    assert answer((first, first + 2, 9)) == "one two three"


def test_best_answer_agrees_with_trying_all_spans(tokenizer) -> None:
    context = " ".join(["alpha", "beta", "gamma", "delta", "epsilon"] * 9)
    question = asked(context)
    (parts,) = spans.windows(tokenizer, [question], PROTOCOL)
    for seed in range(5):
        draw = np.random.default_rng(seed)
        logits = [draw.normal(size=(len(part.row.ids_S), 2)) for part in parts]
        best, text = -np.inf, ""
        for part, values in zip(parts, logits, strict=True):
            count = len(part.offsets_C2)
            for i in range(count):
                for j in range(i, min(i + 5, count)):
                    total = values[part.first + i, 0] + values[part.first + j, 1]
                    if part.widest_C[i] and total > best:
                        best, text = total, context[part.offsets_C2[i, 0] : part.offsets_C2[j, 1]]
        assert spans.best_answer(question, parts, logits, 5) == text


def test_an_empty_context_has_an_empty_answer(tokenizer) -> None:
    (parts,) = spans.windows(tokenizer, [Question("Who?", "", (Answer("", 0),))], PROTOCOL)
    assert spans.best_answer(Question("Who?", "", ()), parts, flat(parts), 5) == ""
    assert parts[0].target(Answer("", 0)) == (0, 0)
