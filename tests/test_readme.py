"""What the README names exists: files, make targets, commands, flags."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from etd_ds.cli import COMMANDS
from etd_ds.contract import spec
from etd_ds.stages import findings, report

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z]+)", README))))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_library_commands_exist():
    named = set(re.findall(r"^etd-ds +([a-z]+)", README, re.M))
    assert named
    assert named <= set(COMMANDS)


def test_service_commands_exist():
    shown = subprocess.run([sys.executable, "-m", "service.cli", "--help"], capture_output=True, text=True, check=True)
    named = set(re.findall(r"etd-jobs ([a-z]+)", README))
    assert named
    assert named <= set(re.findall(r"^    ([a-z]+) ", shown.stdout, re.M))


def test_spec_flags_exist():
    fields = {name.replace("_", "-") for name in spec.JobSpec.model_fields}
    other = {"results", "table", "deepspeed", "student", "out", "host", "port", "data-dir", "help"}
    assert set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", README)) <= fields | other


def test_the_job_in_the_readme_is_a_job():
    bodies = re.findall(r"-d '(\{.*?\})'", README)
    assert bodies
    for body in bodies:
        spec.JobSpec.model_validate_json(body)


def test_the_table_of_results_is_what_the_command_prints():
    command = re.search(r"^etd-ds report --results (\S+) --table ((?:.*\\\n)*.*)$", README, re.MULTILINE)
    assert command
    rows = command[2].replace("\\\n", " ").split()
    assert len(rows) > 1
    assert report.summary(findings.read(ROOT / command[1]), rows) in README
