"""`etd-ds data prepare` and `etd-ds data inspect`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from etd_ds.contract import errors, launch, teachers
from etd_ds.data import corpus, preparation, report, sources, tokenize


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    prepare = verbs.add_parser(
        "prepare",
        help="tokenize text and lay it into rows",
        description="Tokenize text and lay it into rows. Give the folder as `corpus` of a job spec from the shell.",
    )
    prepare.add_argument(
        "--source",
        nargs="+",
        default=["embedded"],
        metavar="SPEC[=WEIGHT]",
        help="embedded, a .txt, .jsonl or .parquet file, a folder or glob of them, or a hub data set "
        "org/name[:config][@revision]; with a weight it is seen that many times an epoch (default: embedded)",
    )
    prepare.add_argument(
        "--tokenizer",
        default=teachers.EMBEDDED,
        metavar="TEACHER",
        help="the teacher whose tokenizer is used, as in a job spec (default: %(default)s)",
    )
    prepare.add_argument(
        "--seq-len", "--seq-length", type=int, default=512, metavar="N", help="tokens a row (default: %(default)s)"
    )
    prepare.add_argument(
        "--layout",
        choices=("packed", "pairs"),
        default="packed",
        help="segments [CLS] a [SEP], or [CLS] a [SEP] b [SEP] as in BERT's pre-training (default: %(default)s)",
    )
    prepare.add_argument(
        "--validation-sequences", type=int, default=128, metavar="N", help="rows held out (default: %(default)s)"
    )
    prepare.add_argument("--seed", type=int, default=0, help="of the pairs (default: %(default)s)")
    prepare.add_argument("--workers", type=int, metavar="N", help="processes (default: from the cores and the text)")
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    prepare.add_argument(
        "--cache",
        type=Path,
        default=launch.default_cache(),
        metavar="DIR",
        help="of hub teachers (default: %(default)s)",
    )
    prepare.add_argument("--quiet", action="store_true", help="no progress bar")
    inspect = verbs.add_parser("inspect", help="show what a prepared folder holds")
    inspect.add_argument("folder", type=Path, metavar="DIR")
    inspect.add_argument("--samples", type=int, default=2, metavar="N", help="rows to decode (default: %(default)s)")
    inspect.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the histogram of lengths")


def run(args: argparse.Namespace) -> int:
    return _prepare(args) if args.verb == "prepare" else _inspect(args)


def _prepare(args: argparse.Namespace) -> int:
    if args.workers is not None and args.workers < 1:
        raise errors.EtdError(f"workers: wanted 1 or more, got {args.workers}", field="workers", got=args.workers)
    tokenizer = tokenize.open_tokenizer(_teacher(args.tokenizer, args.cache))
    options = preparation.make_options(
        tokenizer,
        seq_length=args.seq_len,
        layout=args.layout,
        validation_sequences=args.validation_sequences,
        seed=args.seed,
    )
    inputs = [preparation.Weighted(sources.locate(name), weight) for name, weight in map(sources.weighted, args.source)]
    started = time.perf_counter()
    made = preparation.build(inputs, options, tokenizer, args.out, workers=args.workers, progress=not args.quiet)
    seconds = time.perf_counter() - started
    _print_counts(made.manifest)
    megabytes = made.manifest.tally["bytes"] / 1e6
    print(f"{args.out}: {megabytes:.1f} MB of text in {seconds:.1f} s ({megabytes / max(seconds, 1e-9):.1f} MB/s)")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    opened = corpus.open_corpus(args.folder)
    corpus.verify(args.folder)
    found = report.of(args.folder)
    _print_counts(opened.manifest)
    print(f"fill of the rows     {found.fill:.1%}")
    print(f"padding avoided      {found.padding_saved:.1%} of a loader with one segment a row")
    print(f"unknown tokens       {opened.manifest.unknown / max(opened.manifest.tokens, 1):.3%}")
    print("every file has its checksum")
    print("\ntokens a segment, number of segments")
    print(report.text_plot(found))
    for number, text in enumerate(report.samples(opened, args.samples)):
        print(f"\nrow {number}\n{text}")
    if args.plot:
        args.plot.write_text(report.svg_plot(found, f"Segments of {args.folder.name}"), encoding="utf-8")
        print(f"\nplot: {args.plot}")
    return 0


def _print_counts(manifest: corpus.Manifest) -> None:
    for entry in manifest.sources:
        weight = "" if entry.weight == 1 else f", {entry.weight:g} times an epoch"
        print(f"source               {entry.reference}{weight}")
    options = manifest.options
    print(f"rows                 {options.layout}, up to {options.seq_length} tokens")
    for name in ("documents", "duplicates", "sentences", "tokens"):
        print(f"{name:<21}{getattr(manifest, name):,}")
    for name in ("train", "validation"):
        split = getattr(manifest, name)
        print(f"{name:<21}{split.rows:,} rows, {split.segments:,} segments, {split.tokens:,} tokens")
    for name, count in manifest.tally.items():
        if name != "bytes" and count:
            print(f"etd-ds: {name.replace('_', ' ')}: {count:,}", file=sys.stderr)


def _teacher(reference: str, cache: Path) -> Path:
    found = teachers.locate(reference)
    if isinstance(found, Path):
        return found
    from etd_ds.bert import checkpoint  # torch, which local teachers do not need here

    return checkpoint.resolve(reference, cache).folder
