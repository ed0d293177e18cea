"""Preparation takes the same memory however long the text is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from etd_ds.data import sources

_PEAK = """
import sys
from etd_ds import cli
from etd_ds.data import sources
sources.PIECE_BYTES = 1 << 20
code = cli.main(sys.argv[1:])
# Not getrusage, whose peak begins with that of the process that started this one.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


@pytest.mark.slow
def test_ten_times_the_text_takes_the_same_memory(tmp_path: Path) -> None:
    texts = [entry["extract"] for entry in json.loads(sources.embedded_file().read_bytes()).values()]
    peaks = []
    for times in (1, 10):
        path = tmp_path / f"{times}.jsonl"
        with path.open("w") as file:
            for copy in range(times):
                file.writelines(json.dumps({"text": f"{copy} {text}"}) + "\n" for text in texts[: len(texts) // 2])
        argv = ["data", "prepare", "--source", str(path), "--out", str(tmp_path / f"out{times}"), "--quiet"]
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, *argv, "--workers", "1"], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    small, large = peaks
    # 25 MB of text, 10 MB of tokens: a copy of either in memory would show.
    assert large - small < 20, f"{small:.0f} MB for the text, {large:.0f} MB for ten times the text"
