"""The report of a reproduction: our tables beside the paper's, curves, shares of compute, orderings, and gaps."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from etd_ds.contract import rundir
from etd_ds.evaluate.curves import Curve
from etd_ds.evaluate.recipes import Beyond, Figure, Table1
from etd_ds.stages import document, plots, reproduction
from etd_ds.stages.document import Bullets, Code, Picture, Section, Table
from etd_ds.stages.findings import Findings

_PAPER = {
    "parameters": "params",
    "flops": "FLOPs",
    "sst2": "SST-2",
    "mnli": "MNLI",
    "mrpc": "MRPC",
    "cola": "CoLA",
    "qnli": "QNLI",
    "qqp": "QQP",
    "stsb": "STS-B",
    "squad_f1": "SQuAD F1",
    "squad_em": "EM",
    "average": "Avg.",
}


RESULTS = "results.json"
# An order of fewer says nothing.
_FEWEST_ROWS = 4


def write(found: Findings, into: Path) -> list[Path]:
    """Write `report.md`, `report.html` and `results.json`, with pictures where matplotlib is. Returns the files."""
    into.mkdir(parents=True, exist_ok=True)
    pictures = _draw(found, into)
    title = f"{found.asked.recipes.title}: reproduction at scale '{found.asked.scale}'"
    sections = list(_sections(found, pictures))
    rundir.publish_bytes(into / "report.md", document.markdown(title, sections).encode())
    rundir.publish_bytes(into / "report.html", document.html(title, sections).encode())
    rundir.publish_json(into / RESULTS, found)
    return [into / name for name in ("report.md", "report.html", RESULTS)] + [into / one.file for one in pictures]


def summary(found: Findings, only: Sequence[str] = ()) -> str:
    """One Markdown table, of all rows or some: held-out loss, how soon as good as the baseline, downstream scores."""
    reach = found.asked.recipes.beyond.reach if found.asked.recipes.beyond else None
    rows = []
    for row in found.asked.recipes.runnable():
        if not (runs := list(found.runs.get(row.name, {}).values())) or (only and row.name not in only):
            continue
        same = reach in found.runs and runs[0].objective == next(iter(found.runs[reach].values())).objective
        cells = [_shown(found.starts(row.name), ".3f"), _shown(found.losses(row.name), ".4f")]
        if reach is not None:
            cells.append(_share(found, row.name, reach) if same and row.name != reach else "–")
        name = row.name if runs[0].objective == "last_layer" else f"{row.name} (loss: {runs[0].objective})"
        scores = (_shown(found.scores(row.name, task), ".1f") for task in found.tasks)
        rows.append([name, str(len(runs)), *cells, *scores])
    if found.teacher:
        empty = ["–"] * (3 if reach is None else 4)
        rows.append(
            ["teacher", *empty, *(f"{found.teacher[t].headline:.1f}" for t in found.tasks if t in found.teacher)]
        )
    headings = ["", "seeds", "loss at step 0", "at the end"]
    headings += [] if reach is None else [f"as good as {reach} after"]
    return document.table(Table([*headings, *found.tasks], rows))


def _share(found: Findings, row: str, reach: str) -> str:
    """In per cent of the other's compute, and in how many seeds where that is not all; a dash if none has both."""
    if not (shares := found.shares(row, reach)):
        return "–"
    reached = [100 * share for share in shares if share is not None]
    seeds = "" if len(reached) == len(shares) else f" ({len(reached)} of {len(shares)})"
    return (_shown(reached, ".1f") + " %" if reached else "never") + seeds


def _sections(found: Findings, pictures: Sequence[Picture]) -> Iterator[Section]:
    yield Section("What this is", list(_what(found)))
    yield Section("Table 1: ours beside the paper's", [_table1_ours(found), _table1_paper(found)])
    yield Section("Table 2: ablations", [_table2(found)])
    yield Section(
        "Share of compute",
        [
            "The first point at which a run's held-out loss is as low as the other run's is at its end, as a share of "
            "that other run's FLOPs (0 when it is so from the start); between two measurements the loss is taken to "
            "fall on a straight line. The paper's share is of downstream scores, ours of the loss.",
            _trained(found),
        ],
    )
    yield Section(
        "Orderings of the paper",
        [
            "By how much the row that the paper finds better is better here: in held-out loss, and in each task's "
            "points; mean and sample deviation of the differences seed by seed, and in how many seeds it is better.",
            _orderings(found),
        ],
    )
    if agreeing := list(_agreeing(found)):
        yield Section(
            "Does a lower loss mean a better student?",
            [
                "The paper finds that it largely does [§4.2]. Spearman's correlation, over rows with the last-layer "
                "loss, between the held-out loss at the end (negated) and the score, each the mean over seeds; 1 if "
                "the rows have the same order by both.",
                Table(["task", "rows", "correlation"], agreeing),
            ],
        )
    if found.asked.recipes.beyond is not None:
        yield Section(
            "Beyond the paper",
            [
                f"Each row against {found.asked.recipes.beyond.against}, at equal steps: mean and sample deviation of "
                "the differences seed by seed, and in how many seeds it is better. Shares of compute count what a "
                "refit and a measured choice of layers cost; importance scores, which are computed once for all "
                "students of a teacher, are left out.",
                _beyond(found, found.asked.recipes.beyond),
            ],
        )
    for number, figure in enumerate(found.asked.recipes.figures, 1):
        for panel in _panels(found, number, figure):
            shown = [picture for picture in pictures if picture.shows.startswith(f"{panel.title} over ")]
            yield Section(panel.title, [*shown, _curve_table(panel)])


def _what(found: Findings) -> Iterator[str | Bullets | Code]:
    asked = found.asked
    at = asked.recipes.scales[asked.scale]
    runs = [run for row in found.runs.values() for run in row.values()]
    devices = sorted({run.device for run in runs})
    seeds, about = ", ".join(map(str, asked.seeds)), found.about
    versions = ", ".join(f"{name} {version}" for name, version in about.versions.items())
    yield (
        f"{len(runs)} runs of {len(found.runs)} rows, seeds {seeds}, on {', '.join(devices) or 'nothing yet'}. Numbers "
        "over seeds are mean ± sample deviation."
    )
    yield (
        f"Made on {about.cores} cores of {about.processor}, {about.memory_gib:.0f} GiB, with Python {about.python}, "
        f"{versions}, by"
    )
    yield Code(_command(asked))
    if at.scaled_down:
        yield "What differs from the paper:"
        yield Bullets(at.scaled_down)
    notes = [f"{row.name}: {row.note}" for row in asked.recipes.rows if row.note]
    if notes:
        yield Bullets(notes)
    if found.missing:
        yield "Not finished, and therefore not in the tables:"
        yield Bullets(found.missing)


def _command(asked: reproduction.Reproduction) -> str:
    names = " ".join(shlex.quote(name) for name in asked.rows)
    return f"etd-ds reproduce --scale {asked.scale} --seeds {' '.join(map(str, asked.seeds))} --out DIR --rows {names}"


def _table1_ours(found: Findings) -> Table:
    tasks = found.tasks
    headings = ["ours", "seeds", "student", "params", "FLOPs", "FLOPs as the paper counts", "held-out loss", *tasks]
    rows = []
    if found.teacher:
        scores = [f"{found.teacher[task].headline:.1f}" if task in found.teacher else "–" for task in tasks]
        rows.append(["teacher", *["–"] * 6, *scores])
    for row in found.asked.recipes.runnable():
        runs = list(found.runs.get(row.name, {}).values())
        if not runs:
            continue
        plan, first = runs[0].plan, runs[0]
        cost = [f"{first.flops:.2e}", f"{first.paper_flops:.2e}"]
        shape = f"{plan.student.layers}L-{plan.student.hidden}"
        loss = _shown(found.losses(row.name)) + ("" if first.objective == "last_layer" else f" ({first.objective})")
        scores = [_shown(found.scores(row.name, task), ".1f") for task in tasks]
        rows.append([row.name, str(len(runs)), shape, f"{plan.student_parameters / 1e6:.1f} M", *cost, loss, *scores])
    for name, floor in _floors(found):
        rows.append([name, *["–"] * 6, *(floor.get(task, "–") for task in tasks)])
    return Table(headings, rows)


def _floors(found: Findings) -> Iterator[tuple[str, dict[str, str]]]:
    """What the tasks yield without a reader, from any summary that says it."""
    by_task = {task: one for row in found.runs.values() for run in row.values() for task, one in run.scores.items()}
    for kind, name in (("majority", "floor: commonest answer"), ("bag_of_words", "floor: bag of words")):
        values = {
            task: f"{one.floors[kind][one.reported][next(iter(one.scores[one.reported]))]:.1f}"
            for task, one in by_task.items()
            if one.floors
        }
        if values:
            yield name, values


def _table1_paper(found: Findings) -> Table:
    rows = []
    for row in found.asked.recipes.rows:
        if (line := row.paper.table1) is not None:
            rows.append([row.name, *(_paper_cell(line, name) for name in _PAPER)])
    return Table(["the paper's", *_PAPER.values()], rows)


def _paper_cell(line: Table1, name: str) -> str:
    value = getattr(line, name)
    if value is None:
        return "–"
    if name == "parameters":
        return f"{value / 1e6:.0f} M"
    return f"{value:.2e}" if name == "flops" else f"{value:.2f}" if name == "average" else f"{value:.1f}"


def _table2(found: Findings) -> Table:
    headings = ["", "held-out loss", *found.tasks, "paper: loss", "paper: GLUE", "paper: SQuAD F1/EM", "paper: Avg."]
    rows = []
    for row in found.asked.recipes.rows:
        if (line := row.paper.table2) is not None:
            ours = [
                _shown(found.losses(row.name)),
                *(_shown(found.scores(row.name, task), ".1f") for task in found.tasks),
            ]
            squad = f"{line.squad_f1:.1f}/{line.squad_em:.1f}"
            rows.append([row.name, *ours, f"{line.loss:.3f}", f"{line.score:.2f}", squad, f"{line.average:.2f}"])
    return Table(headings, rows)


def _trained(found: Findings) -> Table:
    rows = []
    for row in found.asked.recipes.rows:
        if (point := row.trained) is not None:
            shares = found.shares(point.row, point.reaches)
            reached = tuple(100 * share for share in shares if share is not None)
            seeds = f"{len(reached)} of {len(shares)} seeds" if shares else "–"
            ours = _shown(reached, ".1f") + (" %" if reached else "")
            rows.append([f"{point.row} as good as {point.reaches}", ours, seeds, f"{point.percent:.0f} %"])
    return Table(["", "ours", "reached in", "the paper's"], rows)


def _orderings(found: Findings) -> Table:
    rows = []
    for one in found.asked.recipes.orderings:
        cells = [_difference(found.differences(one.better, one.worse), "+.4f")]
        cells += [_difference(found.differences(one.better, one.worse, task), "+.1f") for task in found.tasks]
        rows.append([f"{one.better} better than {one.worse}", *cells])
    return Table(["the paper says", "loss lower by", *(f"{task} higher by" for task in found.tasks)], rows)


def _agreeing(found: Findings) -> Iterator[list[str]]:
    for task in found.tasks:
        rows, correlation = found.agreement(task)
        if rows >= _FEWEST_ROWS:
            yield [task, str(rows), f"{correlation:.2f}"]


def _beyond(found: Findings, beyond: Beyond) -> Table:
    rows = []
    for name in (beyond.against, *beyond.rows):
        shares = [_share(found, name, other) for other in (beyond.reach, beyond.against)]
        better = _difference(found.differences(name, beyond.against), "+.4f") if name != beyond.against else "–"
        tasks = [_shown(found.scores(name, task), ".1f") for task in found.tasks]
        rows.append([name, _shown(found.starts(name)), _shown(found.losses(name)), better, *shares, *tasks])
    headings = ["", "held-out loss at step 0", "at the end", "lower by"]
    headings += [f"as good as {other} at its end after" for other in (beyond.reach, beyond.against)]
    return Table([*headings, *found.tasks], rows)


def _shown(values: Sequence[float], form: str = ".4f") -> str:
    """`mean ± deviation` of the sample, the number alone where there is one, a dash where there is none."""
    if not values:
        return "–"
    spread = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{spread}"


def _difference(values: Sequence[float], form: str) -> str:
    if not values:
        return "–"
    holds = sum(value > 0 for value in values)
    deviation = _shown(values, form.removeprefix("+")).partition(" ± ")[2]
    spread = f"{mean(values):{form}}" + (f" ± {deviation}" if deviation else "")
    return f"{spread} ({holds} of {len(values)})"


# ---------------------------------------------------------------- curves


class Panel(NamedTuple):
    """One diagram of a figure."""

    title: str
    """Begins with the figure's name."""
    file: str
    """Its pictures' file names begin so."""
    up: str
    digits: int
    curves: dict[str, dict[int, tuple[float, ...]]]
    """Row -> step -> values, those of the seeds."""


def _panels(found: Findings, number: int, figure: Figure) -> Iterator[Panel]:
    """The losses of a figure's rows, or one diagram for each task that they were scored on while they trained."""
    if figure.of == "loss":
        losses = {name: found.loss_curve(name) for name in figure.rows if name in found.runs}
        yield Panel(figure.name, f"figure{number}", "held-out loss", 4, losses)
        return
    for task in found.tasks:
        scores = {name: curve for name in figure.rows if (curve := found.score_curve(name, task))}
        if scores:
            yield Panel(f"{figure.name}: {task}", f"figure{number}-{task}", f"{task}, per cent", 1, scores)


def _curve_table(panel: Panel, points: int = 11) -> Table:
    """Values at evenly chosen measured steps."""
    steps = sorted({step for curve in panel.curves.values() for step in curve})
    chosen = sorted({steps[round(i * (len(steps) - 1) / (points - 1))] for i in range(points)}) if steps else []
    form = f".{panel.digits}f"
    rows = [[str(step), *(_shown(curve.get(step, ()), form) for curve in panel.curves.values())] for step in chosen]
    return Table(["step", *panel.curves], rows)


def _draw(found: Findings, into: Path) -> list[Picture]:
    if not plots.available():
        return []
    pictures = []
    for number, figure in enumerate(found.asked.recipes.figures, 1):
        for panel in _panels(found, number, figure):
            if not panel.curves:
                continue
            scaled: list[tuple[str, str, Callable[[Curve, int], float]]] = [
                ("steps", "optimizer steps", lambda curve, step: step),
                ("flops", "FLOPs, teacher and student", Curve.cost),
            ]
            for kind, across, place in scaled:
                lines = {}
                for name, curve in panel.curves.items():
                    costs = next(iter(found.runs[name].values())).curve
                    lines[name] = [(place(costs, step), mean(values)) for step, values in curve.items()]
                file = f"{panel.file}-{kind}.svg"
                plots.draw(into / file, lines, across=across, up=panel.up, logarithmic=figure.of == "loss")
                pictures.append(Picture(file, f"{panel.title} over {across}"))
    return pictures
