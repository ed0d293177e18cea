"""`etd-ds plan` from the outside."""

import pytest

from etd_ds import cli

ASKED = ["plan", "--teacher-shape", "bert-base", "--layers", "4", "--hidden", "384"]


def test_it_prints_shape_size_cost_and_the_papers_budget(capsys):
    assert cli.main([*ASKED, "--steps", "1000", "--gpus", "8", "--tflops", "50"]) == 0
    text = capsys.readouterr().out
    assert "4L-384 (12 heads, FFN 1536), from teacher layers 3, 6, 9, 12" in text
    assert "109,482,240" in text
    assert "19,164,288" in text
    assert "1.47e+19" in text
    assert "hours on 8 GPU" in text
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    asked, paper = rows["asked"], rows["the paper's"]
    assert asked[1] == "1,000"
    assert float(paper[-3]) == pytest.approx(700 * float(asked[-3]), rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layers", "13"], "layers: wanted 1 to 12, got 13"),
        (["--hidden", "400"], "hidden: wanted a multiple of 12 heads, from 12 to 768, got 400"),
        (["--hidden", "1000000000"], "from 12 to 768"),
        (["--ffn", "4000"], "ffn: wanted 1 to 3072, got 4000"),
        (["--layer-selection", "1", "2", "3", "13"], "teacher layers from 1 to 12"),
        (["--tflops", "0"], "tflops: wanted more than 0"),
    ],
)
def test_what_cannot_be_is_refused_with_what_could(capsys, flags, message):
    assert cli.main([*ASKED, *flags]) == 2
    assert message in capsys.readouterr().err
