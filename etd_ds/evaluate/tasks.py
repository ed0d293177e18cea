"""The tasks and their protocols as tables: a new task is a row here, and a reader only if its source is new."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from etd_ds.contract import errors

Kind = Literal["classification", "regression", "span"]

# Commits of the data sets, so that the same command means the same examples next year.
GLUE_REPO, GLUE_COMMIT = "nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
SQUAD_REPO, SQUAD_COMMIT = "rajpurkar/squad", "7b6d24c440a36b6815f21b70d25016731768db1f"


@dataclass(frozen=True)
class Protocol:
    """How a task is fine-tuned; every learning rate is tried with every number of epochs [ETD §4.1]."""

    batch_size: int
    learning_rates: tuple[float, ...]
    epochs: tuple[int, ...]
    max_tokens: int
    """[CLS] and [SEP] included. The paper does not say; these are BERT's [Devlin et al.]."""
    stride: int = 128
    """Spans only: tokens between the starts of two windows over a long context."""
    max_question: int = 64
    """Spans only: longer questions are cut."""
    max_answer: int = 30
    """Spans only: no longer answer is given, in tokens."""


# Where the paper is silent: BERT's own fine-tuning recipe.
WARMUP_RATIO, WEIGHT_DECAY, MAX_GRAD_NORM = 0.1, 0.01, 1.0

GLUE = Protocol(32, (5e-6, 1e-5, 2e-5, 3e-5), (4, 5, 10), 128)
SQUAD = Protocol(16, (3e-5,), (4,), 384)


@dataclass(frozen=True)
class Glue:
    """Columns of GLUE, as the TSV files name or number them and as the hub does."""

    folder: str
    """Of the distributed archives, and under which the files may lie."""
    config: str
    a: str | int
    label: str | int
    b: str | int | None = None
    hub_a: str = "sentence"
    hub_b: str | None = None
    splits: tuple[tuple[str, str, str], ...] = (("dev", "dev.tsv", "validation"),)
    """(name of the evaluation, TSV file, split on the hub)."""


@dataclass(frozen=True)
class Squad:
    """The official JSON files."""

    train: str = "train-v1.1.json"
    dev: str = "dev-v1.1.json"


@dataclass(frozen=True)
class Offline:
    """Made by the function of `evaluate.offline` of that name from a package, without a hub."""

    maker: str


@dataclass(frozen=True)
class Task:
    """`metrics[0]` on the evaluation `decides` chooses the learning rate and epochs; `reports` is the headline."""

    name: str
    kind: Kind
    source: Glue | Squad | Offline
    metrics: tuple[str, ...]
    protocol: Protocol
    labels: tuple[str, ...] = ()
    decides: str = "dev"
    reports: str = "dev"

    @property
    def outputs(self) -> int:
        """Numbers that the head gives for a text, or for a token of a context."""
        return {"classification": len(self.labels), "regression": 1, "span": 2}[self.kind]


_NLI = ("entailment", "neutral", "contradiction")
_TOPICS = (
    "Arts",
    "Biology and health sciences",
    "Everyday life",
    "Geography",
    "History",
    "Mathematics",
    "People",
    "Philosophy and religion",
    "Physical sciences",
    "Society and social sciences",
    "Technology",
)

_ROWS = (
    # the paper's eight, in its order [ETD Table 1]
    Task("sst2", "classification", Glue("SST-2", "sst2", a="sentence", label="label"), ("accuracy",), GLUE, ("0", "1")),
    Task(
        "mnli",
        "classification",
        Glue(
            "MNLI",
            "mnli",
            a="sentence1",
            b="sentence2",
            label="gold_label",
            hub_a="premise",
            hub_b="hypothesis",
            splits=(
                ("m", "dev_matched.tsv", "validation_matched"),
                ("mm", "dev_mismatched.tsv", "validation_mismatched"),
            ),
        ),
        ("accuracy",),
        GLUE,
        _NLI,
        decides="m",
        reports="m",
    ),
    Task(
        "mrpc",
        "classification",
        Glue("MRPC", "mrpc", a="#1 String", b="#2 String", label="Quality", hub_a="sentence1", hub_b="sentence2"),
        ("accuracy", "f1"),
        GLUE,
        ("0", "1"),
    ),
    Task("cola", "classification", Glue("CoLA", "cola", a=3, label=1), ("matthews", "accuracy"), GLUE, ("0", "1")),
    Task(
        "qnli",
        "classification",
        Glue("QNLI", "qnli", a="question", b="sentence", label="label", hub_a="question", hub_b="sentence"),
        ("accuracy",),
        GLUE,
        ("entailment", "not_entailment"),
    ),
    Task(
        "qqp",
        "classification",
        Glue("QQP", "qqp", "question1", "is_duplicate", "question2", hub_a="question1", hub_b="question2"),
        ("accuracy", "f1"),
        GLUE,
        ("0", "1"),
    ),
    Task(
        "stsb",
        "regression",
        Glue("STS-B", "stsb", a="sentence1", b="sentence2", label="score", hub_a="sentence1", hub_b="sentence2"),
        ("pearson", "spearman"),
        GLUE,
    ),
    Task("squad", "span", Squad(), ("f1", "em"), SQUAD),
    # where no hub is
    Task(
        "movie_sst2",
        "classification",
        Offline("movie_sst2"),
        ("accuracy",),
        GLUE,
        ("negative", "positive"),
        reports="test",
    ),
    Task(
        "wordnet_isa",
        "classification",
        Offline("wordnet_isa"),
        ("accuracy",),
        GLUE,
        ("another", "kind"),
        reports="test",
    ),
    Task("wiki_topic", "classification", Offline("wiki_topic"), ("accuracy",), GLUE, _TOPICS, reports="test"),
    Task(
        "wiki_pair",
        "classification",
        Offline("wiki_pair"),
        ("accuracy",),
        GLUE,
        ("another", "described"),
        reports="test",
    ),
    Task("wiki_span", "span", Offline("wiki_span"), ("f1", "em"), SQUAD, reports="test"),
)
TASKS = {task.name: task for task in _ROWS}

GROUPS = {
    "paper": tuple(name for name, task in TASKS.items() if not isinstance(task.source, Offline)),
    "glue": tuple(name for name, task in TASKS.items() if isinstance(task.source, Glue)),
    "offline": tuple(name for name, task in TASKS.items() if isinstance(task.source, Offline)),
}


def check(task: Task, positions: int) -> None:
    """Refuse numbers that no fine-tuning of such a model can have. Raises `EtdError` naming the field."""
    protocol = task.protocol
    for field in ("batch_size", "epochs", "learning_rates"):
        value = getattr(protocol, field)
        for number in value if isinstance(value, tuple) else (value,):
            if not 0 < number < (1 if field == "learning_rates" else 1e6):
                raise errors.EtdError(f"{field}: wanted positive numbers, got {number}", field=field, got=number)
    least = protocol.max_question + 16 if task.kind == "span" else 8
    if not least <= protocol.max_tokens <= positions:
        message = f"max_tokens: {task.name} wants {least} to the model's {positions}, got {protocol.max_tokens}"
        raise errors.EtdError(message, field="max_tokens", wanted=[least, positions], got=protocol.max_tokens)


def named(names: list[str]) -> list[Task]:
    """The tasks of those names, a group standing for its members; each once. Raises `EtdError`."""
    found: dict[str, Task] = {}
    for name in names:
        for member in GROUPS.get(name, (name,)):
            if member not in TASKS:
                raise errors.EtdError(
                    f"task: wanted {', '.join(TASKS)}, or one of the groups {', '.join(GROUPS)}, got {name!r}",
                    field="task",
                    wanted=[*TASKS, *GROUPS],
                    got=name,
                )
            found[member] = TASKS[member]
    return list(found.values())
