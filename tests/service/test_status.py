"""The whole truth table of a job's status: every status, wish and sight that there can be."""

from __future__ import annotations

import itertools

import pytest

from etd_ds.contract import launch
from service import status
from service.status import Seen, Verdict, decide

WISHES: tuple[status.Wish, ...] = ("", "cancel", "pause", "resume", "retry")
CODES = (None, launch.EXIT_DONE, launch.EXIT_BAD_INPUT, launch.EXIT_STOPPED, 1, -9, 137, 247)
SIGHTS = [Seen(*one) for one in itertools.product((False, True), (False, True), CODES, (False, True))]
TRIES = list(itertools.product((False, True), (False, True)))


def all_cases(*statuses: status.Status):
    return itertools.product(statuses, WISHES, SIGHTS, TRIES)


def verdict(is_now: status.Status, wish: status.Wish, seen: Seen, tries: tuple[bool, bool]) -> Verdict:
    return decide(is_now, wish, seen, tries_left=tries[0], retry_killed=tries[1])


def test_every_verdict_is_a_status_and_only_running_jobs_need_an_executor():
    for is_now, wish, seen, tries in all_cases(*status.STATUSES):
        found = verdict(is_now, wish, seen, tries)
        assert found.status in status.STATUSES
        if found.action:
            assert (is_now, found.status) == ("running", "running")
        if found.status == "failed" and is_now == "running":
            assert found.code in status.MESSAGES


@pytest.mark.parametrize(
    ("is_now", "becomes"),
    [
        ("extracting", {**dict.fromkeys(WISHES, "extracting"), "cancel": "cancelled"}),
        ("queued", {"": "queued", "cancel": "cancelled", "pause": "paused", "resume": "queued", "retry": "queued"}),
        ("paused", {"": "paused", "cancel": "cancelled", "pause": "paused", "resume": "queued", "retry": "paused"}),
        ("succeeded", dict.fromkeys(WISHES, "succeeded")),
        ("failed", {**dict.fromkeys(WISHES, "failed"), "retry": "queued"}),
        ("cancelled", {**dict.fromkeys(WISHES, "cancelled"), "retry": "queued"}),
    ],
)
def test_without_a_trainer_only_wishes_count(is_now, becomes):
    for _, wish, seen, tries in all_cases(is_now):
        assert verdict(is_now, wish, seen, tries) == Verdict(becomes[wish])


def test_what_was_never_extracted_is_extracted_before_it_is_queued():
    for ended in ("failed", "cancelled"):
        assert decide(ended, "retry", Seen(), extracted=False) == Verdict("extracting")


def test_what_lives_is_running_and_is_stopped_only_on_a_wish():
    for _, wish, seen, tries in all_cases("running"):
        if seen.alive:
            action = "stop" if wish in ("cancel", "pause") else ""
            assert verdict("running", wish, seen, tries) == Verdict("running", action)


def test_a_result_is_success_whatever_was_wished_or_exited():
    for _, wish, seen, tries in all_cases("running"):
        if seen.result and not seen.alive:
            assert verdict("running", wish, seen, tries) == Verdict("succeeded")


def test_a_wish_is_granted_once_nothing_lives():
    for _, wish, seen, tries in all_cases("running"):
        if not seen.alive and not seen.result and wish in ("cancel", "pause"):
            assert verdict("running", wish, seen, tries).status == {"cancel": "cancelled", "pause": "paused"}[wish]


@pytest.mark.parametrize(
    ("seen", "tries", "expected"),
    [
        (Seen(started=False), (False, False), Verdict("running", "start")),
        (Seen(started=True), (True, False), Verdict("queued", "", "trainer_lost")),
        (Seen(started=True), (False, True), Verdict("failed", "", "trainer_lost")),
        (Seen(True, exit_code=launch.EXIT_PEERS_LOST), (True, False), Verdict("queued", "", "trainer_lost")),
        (Seen(True, exit_code=launch.EXIT_STOPPED), (False, False), Verdict("queued", "", "stopped")),
        (Seen(True, exit_code=launch.EXIT_BAD_INPUT), (True, True), Verdict("failed", "", "bad_input")),
        (Seen(True, exit_code=launch.EXIT_DONE), (True, False), Verdict("failed", "", "trainer_killed")),
        (Seen(True, exit_code=247), (True, False), Verdict("failed", "", "trainer_killed")),
        (Seen(True, exit_code=-9), (True, True), Verdict("queued", "", "trainer_killed")),
        (Seen(True, exit_code=137), (False, True), Verdict("failed", "", "trainer_killed")),
        (Seen(True, exit_code=1), (True, True), Verdict("failed", "", "trainer_crashed")),
        (Seen(refused=True), (True, True), Verdict("failed", "", "refused")),
    ],
)
def test_how_an_attempt_without_result_ends(seen, tries, expected):
    for wish in ("", "resume", "retry"):
        assert verdict("running", wish, seen, tries) == expected


def test_a_dead_attempt_never_stays_running():
    for _, wish, seen, tries in all_cases("running"):
        if seen.started and not seen.alive:
            assert verdict("running", wish, seen, tries).status != "running"


def test_what_fails_in_company_is_tried_alone():
    for _, wish, seen, tries in all_cases("running"):
        alone = verdict("running", wish, seen, tries)
        together = decide("running", wish, seen, tries_left=tries[0], retry_killed=tries[1], in_company=True)
        assert together == (Verdict("queued", "", "apart") if alone.status == "failed" else alone)
