"""What a person on a terminal sees of long stages."""

import io
import sys

from etd_ds.stages import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_each_student_has_its_own_bars_and_a_search_shows_how_far_it_is(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    report = progress.bar()
    for _ in range(2):
        report("refit", 0, 1)
        report("refit", 1, 1)
    for tried in (1, 2, 3):
        report("layers tried", tried, tried + 1)
    report("layers tried", 3, 3)
    said = sys.stderr.getvalue()
    assert said.count("refit: 100%") == 2
    assert "3/3" in said
