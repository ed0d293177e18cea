"""How the job service bears load: latency of status requests while something trains, downloads, and many watchers.

    python -m benchmarks.service [--seconds 20] [--rate 100] [--megabytes 512] [--watchers 50]

A real server process on loopback. A stand-in trainer keeps one core busy and reports steps; a student of random bytes
is downloaded. Prints one line a figure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from etd_ds.contract import events, rundir, shape

BUSY = "--busy-trainer"
GRACE = 2
"""Seconds that the busy trainer has to end, which it does not use."""


def main() -> int:
    """Start a server, load it, print figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=int, default=100, help="status requests a second")
    parser.add_argument("--megabytes", type=int, default=512, help="size of the student to download")
    parser.add_argument("--watchers", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="etd-load-") as folder:
        root = Path(folder)
        itself = shlex.join((sys.executable, str(Path(__file__).resolve())))
        command = [
            sys.executable,
            "-m",
            "service.cli",
            "serve",
            "--port",
            "0",
            "--cpu",
            "--data-dir",
            str(root / "data"),
        ]
        command += [
            "--grace",
            str(GRACE),
            "--slots",
            "1",
            "--cache",
            str(root / "cache"),
            "--streams",
            "0",
            "--trainer-command",
            f"{itself} {BUSY}",
        ]
        command += ["--worker-command", f"{itself} --worker {args.megabytes}"]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr is not None
            url = (
                next(line for line in server.stderr if "listening on " in line).split("listening on ")[1].split(",")[0]
            )
            asyncio.run(measure(url, server.pid, args))
        finally:
            server.terminate()
            server.wait()
    return 0


async def measure(url: str, pid: int, args: argparse.Namespace) -> None:
    """Print the figures of the server at `url`."""
    with httpx.Client(base_url=url, timeout=60) as http:
        ready = http.post("/jobs", json={"layers": 3, "hidden": 192, "steps": 1}).json()
        while (state := http.get(ready["links"]["self"]).json()["status"]) != "succeeded":
            assert state in ("queued", "running"), state
            await asyncio.sleep(0.2)
        job = http.post("/jobs", json={"layers": 3, "hidden": 192, "steps": 10_000}).json()
        while http.get(job["links"]["self"]).json()["progress"] is None:
            await asyncio.sleep(0.2)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; one core is kept busy by the trainer")
        port = http.base_url.port or 80
        came: list[float] = []
        start = time.perf_counter()
        watching = [asyncio.create_task(watch(port, job["events"], came)) for _ in range(args.watchers)]
        while len(came) < args.watchers:
            await asyncio.sleep(0.01)
        if came:
            print(f"{len(came)} watchers that came at once: the last is answered after "
                  f"{(came[-1] - start) * 1e3:.0f} ms")  # fmt: skip
        began = cpu_seconds(pid)
        waits = sorted(await ask(port, job["links"]["self"], args.rate, args.seconds))
        used = (cpu_seconds(pid) - began) / args.seconds
        middle, high = statistics.median(waits), waits[int(0.99 * len(waits))]
        print(f"status at {args.rate}/s with {args.watchers} watchers: median {middle * 1e3:.1f} ms, p99 "
              f"{high * 1e3:.1f} ms, worst {waits[-1] * 1e3:.1f} ms; the server used {used:.2f} of a core")  # fmt: skip
        asked = time.perf_counter()
        http.post(job["links"]["cancel"])
        while (
            'etd_slots{state="free"} 0\n' in http.get("/metrics").text
            or http.get(job["links"]["self"]).json()["ended"] is None
        ):
            await asyncio.sleep(0.05)
        took = time.perf_counter() - asked
        print(f"cancel of a trainer that ignores it: slot free after {took:.1f} s, {GRACE} s of them grace")
        seen = await asyncio.gather(*watching)
        print(f"watchers: {len(seen)}, each saw {min(seen)} to {max(seen)} events")
    await download(f"{url}{ready['links']['student']}", pid)


# Bare sockets: a client library on the same cores would be measured along with the server.
async def _open(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    return reader, writer


async def ask(port: int, path: str, rate: int, seconds: float) -> list[float]:
    """Latencies of an open loop: requests start when they are due, however slow the answers are."""
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def one(due: float) -> float:
        while idle and idle[-1][0].at_eof():  # the server closes what was not used for 5 s
            idle.pop()
        if idle:
            reader, writer = idle.pop()
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        else:
            reader, writer = await _open(port, path)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        idle.append((reader, writer))
        return time.perf_counter() - due

    tasks = []
    start = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due)))
    return list(await asyncio.gather(*tasks))


async def watch(port: int, path: str, came: list[float]) -> int:
    """Follow a job to its end; how many events came. `came` gets the time of the first line."""
    reader, writer = await _open(port, path)
    count = 0
    await reader.readline()
    came.append(time.perf_counter())
    while b"event: status" not in (line := await reader.readline()) or b"cancelled" not in await reader.readline():
        count += line.startswith(b"event:")
    writer.close()
    return count


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used."""
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")


async def download(url: str, pid: int) -> None:
    """The tar, with curl: a client in Python would be measured instead of the server."""
    form = "%{speed_download} %{size_download}"
    asked = await asyncio.create_subprocess_exec(
        "curl", "-s", "-o", "/dev/null", "-w", form, url, stdout=subprocess.PIPE
    )
    said = (await asked.communicate())[0].decode().split()
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    peak = int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
    speed, size = float(said[0]) / 1e6, int(said[1]) / 1e6
    print(f"download: {speed:.0f} MB/s of {size:.0f} MB; server's peak {peak:.0f} MB")


def train() -> int:
    """The stand-in trainer: a student at once if one step is asked, else work on one core until stopped."""
    run = rundir.RunDir(Path(sys.argv[sys.argv.index("--run") + 1]))
    steps = run.read_job().steps or 1
    events.append(
        run.events, events.Attempt(step=0, steps=steps, world_size=1, precision="fp32", device="cpu", sequences=1)
    )
    if steps == 1:
        with rundir.publishing(run.student) as folder:
            size = int((run.init / "megabytes").read_text())
            with (folder / "model.safetensors").open("wb") as out:
                for _ in range(size):
                    out.write(os.urandom(1_000_000))
        files = {path.name: rundir.digest(path) for path in run.student.iterdir()}
        numbers = {"steps": 1, "tokens": 1, "seconds": 1.0, "validation_before": None, "validation_after": None}
        rundir.publish_json(run.result, rundir.Result(**numbers, files=files))
        return 0
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    step, next_event = 0, time.monotonic()
    while True:
        sum(range(100_000))
        if time.monotonic() >= next_event:
            step, next_event = step + 1, time.monotonic() + 0.2
            numbers = {"learning_rate": 1e-4, "tokens": step, "tokens_per_second": 1.0, "eta_seconds": 1.0}
            events.append(run.events, events.Step(step=step, steps=steps, epoch=0.1, loss=1.0, terms={}, **numbers))


def work() -> int:
    """The stand-in extraction worker: says yes, and notes how large the student shall be."""
    size = sys.argv[sys.argv.index("--worker") + 1]
    print(json.dumps({"ready": True}), flush=True)
    small = shape.EncoderShape(layers=3, hidden=192, heads=12, ffn=768)
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, object] = {"teacher": small.model_dump(), "student": small.model_dump()}
        if asked["verb"] == "extract":
            run = rundir.RunDir(Path(asked["run"]))
            with rundir.publishing(run.init) as folder:
                (folder / "megabytes").write_text(size)
            plan = rundir.Plan(teacher=small, student=small, teacher_sha256="0" * 64, corpus_sha256=None,
                               teacher_layers=(), teacher_parameters=2, student_parameters=1, compression=2.0,
                               seconds=0.0, scores_cached=None)  # fmt: skip
            rundir.publish_json(run.plan, plan)
            answer = plan.model_dump(mode="json")
        print(json.dumps({"id": asked["id"], "ok": answer}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(train() if BUSY in sys.argv else work() if "--worker" in sys.argv else main())
