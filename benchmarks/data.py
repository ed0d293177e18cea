"""Corpus preparation against `datasets.map` with the same tokenizer, its memory, and how long a step waits for data.

    python -m benchmarks.data [--source FILE.jsonl] [--repetitions 3]

Both sides are measured in one run, in turn, each in a process of its own. Ours does more: it also parts sentences,
packs rows, hashes, checks and syncs to disk. Before any ratio is printed, both must have made the same token ids.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from etd_ds.contract import teachers

_OURS = """
from etd_ds import cli
code = cli.main(["data", "prepare", "--source", SOURCE, "--out", OUT, "--workers", WORKERS, "--quiet"])
assert code == 0
"""

# The common way: BERT's fast tokenizer in a batched map over the documents, written to Arrow files.
_MAP = """
import datasets, transformers
datasets.disable_progress_bars()
tokenizer = transformers.AutoTokenizer.from_pretrained(TEACHER)
tokenizer.model_max_length = 10**9
texts = datasets.load_dataset("json", data_files=SOURCE, split="train", cache_dir=OUT)
start()
tokenized = texts.map(
    lambda batch: tokenizer(batch["text"], add_special_tokens=False, truncation=False),
    batched=True, num_proc=int(WORKERS), remove_columns=texts.column_names, load_from_cache_file=False,
)
"""

# What no pipeline around this tokenizer can beat by asking it for every text.
_TOKENIZER = """
import json
from pathlib import Path
from etd_ds.data import tokenize
tokenizer = tokenize.open_tokenizer(Path(TEACHER))
texts = [json.loads(line)["text"] for line in open(SOURCE)]
start()
for at in range(0, len(texts), 1000):
    tokenizer.encode_batch(texts[at : at + 1000], add_special_tokens=False)
"""

_AROUND = """
import resource, time
begun = [0.0, 0.0]
def used():
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
def start():
    begun[:] = time.perf_counter(), used()
{names}
import etd_ds.data
start()
{body}
import json
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
print("@" + json.dumps(dict(wall=time.perf_counter() - begun[0], cpu=used() - begun[1], peak=peak)))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="a .jsonl file with text (default: the embedded corpus)")
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = args.source or _written(Path(scratch) / "text.jsonl", 1)
        print(f"{len(os.sched_getaffinity(0))} cores, {source.stat().st_size / 1e6:.1f} MB of JSON lines")
        _gate(source)
        for workers in (1, len(os.sched_getaffinity(0))):
            _throughput(source, workers, args.repetitions, Path(scratch))
        _memory(Path(scratch))
        _waiting(Path(scratch))


def _written(path: Path, times: int) -> Path:
    from etd_ds.data import sources

    texts = [entry["extract"] for entry in json.loads(sources.embedded_file().read_bytes()).values()]
    with path.open("w") as file:
        for copy in range(times):
            file.writelines(json.dumps({"text": f"{copy} {text}"}) + "\n" for text in texts)
    return path


def _gate(source: Path) -> None:
    """Our token ids of every document are those of transformers' tokenizer. Exits if not."""
    import transformers

    from etd_ds.data import encode, reading, sources, splitting, tokenize

    theirs = transformers.AutoTokenizer.from_pretrained(teachers.embedded_folder())
    encoder = encode.Encoder(tokenize.open_tokenizer(teachers.embedded_folder()))
    documents = 0
    for piece in sources.pieces(sources.locate(str(source))):
        for text in reading.documents(piece, reading.Tally()):
            wanted = theirs(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
            documents += 1
            if encoder(splitting.sentences(text)).ids.tolist() != wanted:
                sys.exit(f"document {documents} has other token ids; no ratio means anything")
    print(f"gate: the token ids of {documents:,} documents are equal")


def _throughput(source: Path, workers: int, repetitions: int, scratch: Path) -> None:
    bodies = {"etd-ds": _OURS, "datasets.map": _MAP, "tokenizer alone": _TOKENIZER}
    if workers > 1:
        del bodies["tokenizer alone"]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in bodies}
    for number in range(repetitions):
        for name, body in bodies.items():
            out = scratch / f"{name.replace(' ', '')}-{workers}-{number}"
            found[name].append(_measure(body, source, out, workers))
    size = source.stat().st_size / 1e6
    print(f"\n{workers} process{'es' if workers > 1 else ''}: medians of {repetitions}, MB/s [least, most]")
    print(f"{'':<18}{'by wall time':>26}{'by CPU time':>26}")
    medians = {}
    for name, runs in found.items():
        cells = []
        for clock in ("wall", "cpu"):
            speeds = sorted(size / run[clock] for run in runs)
            medians[name, clock] = statistics.median(speeds)
            cells.append(f"{medians[name, clock]:>10.2f} [{speeds[0]:.2f}, {speeds[-1]:.2f}]".rjust(26))
        print(f"{name:<18}{''.join(cells)}")
    ratios = [medians["etd-ds", clock] / medians["datasets.map", clock] for clock in ("wall", "cpu")]
    print(f"etd-ds / datasets.map: {ratios[0]:.2f}× by wall time, {ratios[1]:.2f}× by CPU time")


def _measure(body: str, source: Path, out: Path, workers: int = 1) -> dict[str, float]:
    values = {"SOURCE": source, "OUT": out, "WORKERS": workers, "TEACHER": teachers.embedded_folder()}
    names = "\n".join(f"{name} = {str(value)!r}" for name, value in values.items())
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    script = _AROUND.format(names=names, body=body)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout.rsplit("@", 1)[1])
    return figures


def _memory(scratch: Path) -> None:
    print("\npeak memory of one process")
    for times in (4, 40):  # a piece of the input is 16 MB: less text than that takes less
        source = _written(scratch / f"times-{times}.jsonl", times)
        peak = _measure(_OURS, source, scratch / f"memory-{times}")["peak"]
        print(f"{source.stat().st_size / 1e6:>8.1f} MB of text {peak:>8.0f} MB")


def _waiting(scratch: Path) -> None:
    """Share of the time that steps of several lengths wait for their batches."""
    from etd_ds import data

    corpus: Any = data.prepare(
        "embedded",
        tokenizer=teachers.embedded_folder(),
        seq_length=512,
        validation_sequences=128,
        cache=scratch,
        progress=False,
    )
    stream = data.Stream(corpus.train, batch_size=128, seed=0)
    started = time.perf_counter()
    for step in range(50):
        stream.micro_batches(step, 32)
    print(f"\na step of 128 × 512 tokens is made in {(time.perf_counter() - started) / 50 * 1e3:.1f} ms")
    for milliseconds in (10, 35, 200):
        ahead = data.Ahead(stream)
        for step in range(2000 // milliseconds):
            ahead.micro_batches(step, 32)
            time.sleep(milliseconds / 1e3)  # a GPU computes; the processor is free
        print(f"steps of {milliseconds:>3} ms wait {ahead.waiting_share:.1%} of the time")
        ahead.close()


if __name__ == "__main__":
    main()
