"""The main job on this machine, from nothing: serve, post, watch, download, load, compare."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from etd_ds.contract import launch
from service import client

# A small job: minutes on two CPU cores. Everything that is not named has its default.
SPEC: dict[str, Any] = {
    "layers": 3,
    "hidden": 192,
    "mode": "impt",
    "importance_sentences": 1000,
    "mlm_head_steps": 60,
    "refit": "all",
    "seq_length": 128,
    "batch_size": 32,
    "steps": 80,
    "learning_rate": 5e-4,
    "validation_sequences": 64,
    "validate_every": 40,
    "checkpoint_every": 40,
    "log_every": 1,
}


def run(folder: Path) -> int:
    """Run the whole demo in `folder` (a server's data, the student); 0 if the student arrived and loads.

    However it ends, Ctrl-C and SIGTERM included, it leaves neither a server nor a job running.
    """
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    port = launch.free_port()
    log = folder / "server.log"
    argv = [sys.executable, "-m", "service.cli", "serve", "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--data-dir", str(folder / "data")]
    console.print(f"[bold]1. server[/] on http://127.0.0.1:{port}, log in {log}")
    with log.open("wb") as out:
        server = subprocess.Popen(argv, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        with client.answering(url), client.Client(url) as api:
            _wait_until_up(api, server, log)
            job = _create(console, api)
            try:
                job = _watch(console, api, job)
            except BaseException:
                api.cancel(job["id"])
                api.wait(job["id"])
                raise
            if job["status"] != "succeeded":
                console.print(f"[red]the job ended {job['status']}:[/] {json.dumps(job.get('error'), indent=2)}")
                return 1
            student = folder / "student"
            api.pull(job["id"], student)
            console.print(f"[bold]4. download[/] {job['links']['student']} -> {student}")
        _show(console, job, student, _compare(student))
    finally:
        _stop(server)
    console.print(f"Done in {time.monotonic() - began:.0f} s. The student stays in {student}.")
    return 0


def _wait_until_up(api: client.Client, server: subprocess.Popen[bytes], log: Path) -> None:
    """Until the server answers. Raises `RuntimeError` with the end of its log if it ends or needs over a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            api.list()
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"the server did not come up; the end of {log}:\n{log.read_text(errors='replace')[-2000:]}")


def _create(console: Console, api: client.Client) -> dict[str, Any]:
    console.print(f"[bold]2. POST /jobs[/] {json.dumps(SPEC)}")
    with console.status("extracting: fitting an MLM head, scoring neurons, cutting the student …"):
        job = api.create(SPEC)
    student = job["student"]
    console.print(
        f"   201 {job['id']}: {student['layers']} layers, hidden {student['hidden']}, "
        f"{student['parameters']:,} parameters ({student['compression']:.1f}× smaller), "
        f"extracted in {student['extraction_seconds']:.1f} s"
    )
    return job


def _watch(console: Console, api: client.Client, job: dict[str, Any]) -> dict[str, Any]:
    """Show the events as they come until the job has ended; the ended job."""
    console.print(f"[bold]3. GET {job['links']['events']}[/]")
    columns = (TextColumn("   {task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("queued", total=SPEC["steps"])
        for event in api.events(job["id"]):
            match event.get("type"):
                case "stage" if event["state"] == "start":
                    bar.update(task, description=event["stage"])
                case "step":
                    text = f"step {event['step']} loss {event['loss']:.4f} {event['tokens_per_second']:,.0f} tokens/s"
                    bar.update(task, completed=event["step"], total=event["steps"], description=text)
                case "validation":
                    bar.console.print(f"   held-out loss after {event['step']} steps: {event['loss']:.4f}")
                case "checkpoint":
                    bar.console.print(f"   checkpoint {event['name']}")
    return api.get(job["id"])


def _compare(student: Path) -> dict[str, Any]:
    """What `etd-ds compare` measures; in a process of its own, since this one never imports torch."""
    argv = [sys.executable, "-m", "etd_ds.cli", "compare", "--student", str(student), "--json"]
    found = subprocess.run(argv, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(f"etd-ds compare failed:\n{found.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(found.stdout)
    return measured


def _show(console: Console, job: dict[str, Any], student: Path, found: dict[str, Any]) -> None:
    teacher, cut = found["teacher"], found["student"]
    table = Table(title="Teacher and student, loaded with stock transformers", title_justify="left")
    for heading in ("", "teacher", "student", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, key, form in (
        ("parameters", "parameters", "{:,}"),
        ("model.safetensors, MB", "megabytes", "{:.1f}"),
        ("CPU latency, one text of 64 tokens, ms", "milliseconds", "{:.1f}"),
    ):
        ratio = f"{teacher[key] / cut[key]:.1f}×"
        table.add_row(name, form.format(teacher[key]), form.format(cut[key]), ratio)
    console.print("[bold]5. result[/]")
    console.print(table)
    before, after = job["result"]["validation_before"]["loss"], job["result"]["validation_after"]["loss"]
    console.print(
        f"   held-out distillation loss: {before:.4f} before, {after:.4f} after {job['result']['steps']} steps"
    )
    console.print(
        f"   {found['sentences']} held-out sentences: cosines between embeddings correlate "
        f"{found['correlation']:.3f} with the teacher's; {found['neighbours']:.0%} keep their nearest neighbour "
        f"(chance {found['chance_neighbours']:.1%})"
    )


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
