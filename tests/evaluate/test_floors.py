"""Floors: the commonest answer and the bag of words."""

from __future__ import annotations

from dataclasses import replace

from etd_ds.evaluate import tasks
from etd_ds.evaluate.examples import Answer, Labelled, Material, Question
from etd_ds.evaluate.floors import floors


def test_the_majority_is_the_share_of_the_commonest_training_label() -> None:
    rows = [Labelled(f"word{i % 5}", None, float(i % 4 == 0)) for i in range(40)]
    found = floors(tasks.TASKS["sst2"], Material(rows, {"dev": rows[:8]}))
    assert found["majority"]["dev"]["accuracy"] == 75


def test_a_bag_of_words_learns_what_single_words_say_and_not_what_only_order_says() -> None:
    words = [Labelled(f"{('bad', 'good')[i % 2]} film {i // 2 % 7}", None, float(i % 2)) for i in range(80)]
    assert floors(tasks.TASKS["sst2"], Material(words, {"dev": words}))["bag_of_words"]["dev"]["accuracy"] == 100
    # the pair's label is whether both texts are the same side; no single word tells
    pairs = [Labelled(("p", "q")[i % 2], ("p", "q")[i // 2 % 2], float(i % 2 == i // 2 % 2)) for i in range(80)]
    task = tasks.TASKS["qqp"]
    assert floors(task, Material(pairs, {"dev": pairs}))["bag_of_words"]["dev"]["accuracy"] == 100  # overlap does tell


def test_regression_floors_are_the_mean_and_a_line_over_words() -> None:
    rows = [Labelled(f"n{i % 6}", f"n{i % 6}", float(i % 6)) for i in range(60)]
    found = floors(tasks.TASKS["stsb"], Material(rows, {"dev": rows}))
    assert found["majority"]["dev"]["pearson"] == 0
    assert found["bag_of_words"]["dev"]["pearson"] > 99


def test_the_span_floor_takes_the_sentence_most_like_the_question() -> None:
    context = "Cats sleep all day. Dogs bark at night."
    questions = [Question("What do dogs do at night?", context, (Answer("Dogs", context.index("Dogs")),))] * 4
    task = replace(tasks.TASKS["squad"], metrics=("em",))
    found = floors(task, Material(questions, {"dev": questions}))
    assert found["majority"]["dev"]["em"] == 0
    assert found["bag_of_words"]["dev"]["em"] == 100
