"""The door: one line for what is wrong, and an exit code that says whose fault it is."""

import pytest

from etd_ds import cli


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--layers", "3", "--hidden", "192", "--teacher", "~nobody-here/m"],
        ["plan", "--layers", "3", "--hidden", "192", "--sequences", "0"],
        ["plan", "--layers", "99", "--hidden", "192"],
        ["extract", "--layers", "3", "--hidden", "192", "--mode", "best", "--out", "nowhere"],
        ["extract", "--layers", "3", "--hidden", "192", "--corpus", "texts/misspelt.txt", "--out", "nowhere"],
        ["data", "prepare", "--workers", "0", "--out", "nowhere"],
        ["compare", "--student", "nowhere"],
        ["compare", "--student", "nowhere", "--sentences", "2"],
        ["evaluate", "--task", "wiki_topic", "--train-limit", "-5", "--out", "nowhere"],
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, capsys):
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("etd-ds: ")
    assert said.count("\n") == 1


def test_what_the_system_refuses_is_one_line_and_code_1(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["extract", "--layers", "1", "--hidden", "96", "--mode", "rand", "--quiet"]
    assert cli.main([*arguments, "--out", str(tmp_path / "file" / "out")]) == 1
    assert capsys.readouterr().err.startswith("etd-ds: ")
