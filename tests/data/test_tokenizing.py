import sys
from pathlib import Path

import pytest

from etd_ds.contract import errors
from etd_ds.data import sources, tokenizing


def test_a_process_that_died_is_told_of_and_ended_without_another_error(tmp_path: Path) -> None:
    crew = tokenizing._Crew(tmp_path, tmp_path / "tokenizer.json")
    crew._command = [sys.executable, "-c", "raise SystemExit(3)"]
    task = tokenizing.Task(0, 0, sources.Piece("text", "a.txt", 0, 1, 1))
    for _ in range(2):  # the second task finds the pipe closed and stays in its buffer
        with pytest.raises(errors.CorpusError, match=r"ended with code 3 at a\.txt"):
            crew.do(task)
    crew.close()
