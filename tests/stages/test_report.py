"""The report, from findings that are kept as data."""

from pathlib import Path

import pytest

from etd_ds.stages import findings, report

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "small" / report.RESULTS


@pytest.fixture(scope="module")
def found() -> findings.Findings:
    return findings.read(RESULTS)


def test_a_row_that_has_not_run_has_dashes(found: findings.Findings) -> None:
    runs = {name: row for name, row in found.runs.items() if name != "ETD-Refit"}
    less = found.model_copy(update={"runs": runs})
    beyond = less.asked.recipes.beyond
    assert beyond is not None
    rows = {name: cells for name, *cells in report._beyond(less, beyond).rows}
    assert set(rows["ETD-Refit"]) == {"–"}
    assert "–" not in rows["ETD-Refit-measured"][:5]


def test_what_a_refit_and_a_search_cost_is_counted(found: findings.Findings) -> None:
    cut, refitted, searched = (found.runs[name][0].flops for name in ("ETD-Impt", "ETD-Refit", "ETD-Refit-measured"))
    assert cut < refitted < searched


def test_rows_in_the_same_order_by_loss_and_by_score_agree(found: findings.Findings) -> None:
    task = found.tasks[0]
    scored = {name: row for name, row in found.runs.items() if name in ("Rand-Init", "ETD-Impt", "ETD-Refit")}
    best = {name: max(found.scores(name, task)) for name in scored}
    assert best["Rand-Init"] < best["ETD-Impt"] < best["ETD-Refit"], "the test wants rows in order"
    assert found.model_copy(update={"runs": scored}).agreement(task) == (3, pytest.approx(1))
    scores = [{seed: run.scores for seed, run in scored[name].items()} for name in ("ETD-Refit", "Rand-Init")]
    for name, given in zip(("Rand-Init", "ETD-Refit"), scores, strict=True):
        scored[name] = {seed: run.model_copy(update={"scores": given[seed]}) for seed, run in scored[name].items()}
    assert found.model_copy(update={"runs": scored}).agreement(task) == (3, pytest.approx(-1))
    assert found.model_copy(update={"runs": {}}).agreement(task) == (0, 0)
