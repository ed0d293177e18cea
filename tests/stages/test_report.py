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
