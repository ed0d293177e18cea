"""The job spec: everything a run depends on, checked once. The same class for HTTP, the shell and recipes."""

from __future__ import annotations

import hashlib
import itertools
import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from typing_extensions import Self

from etd_ds.contract import errors

Mode = Literal["rand", "impt", "none"]
Objective = Literal["last_layer", "tinybert", "minilm"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Neuron = Literal["ffn", "head", "hidden"]
# Each level includes those before it.
Refit = Literal["none", "projection", "outputs", "norms", "all"]


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("wanted a number")
    return value


# In these the students of one trainer may differ; all else they share, down to the batch.
OWN = frozenset(
    ("layers", "hidden", "ffn", "mode", "layer_selection", "reverse", "hidden_consistency", "objective",
     "importance_sentences", "importance_reduction", "mlm_head_steps", "refit", "learning_rate", "warmup_ratio",
     "weight_decay", "max_grad_norm", "dropout", "keep_checkpoints", "log_every", "tensorboard", "gpus",
     "nodes", "deepspeed")
)  # fmt: skip
Count = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(_no_bool)]
# A teacher or corpus: an alias, a hub id with an optional pinned revision, or (from the shell only) a folder.
Reference = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$")]


def _refuse(field: str, wanted: str, got: object) -> errors.EtdError:
    return errors.EtdError(f"{field}: wanted {wanted}, got {got}", field=field, wanted=wanted, got=got)


def public_name(reference: str) -> str:
    """How a teacher or corpus is named to others: a local path by its last part, since students are handed around."""
    return Path(reference).name if reference.startswith(("/", "~", ".")) else reference


class JobSpec(BaseModel):
    """One student: its shape, how it is cut from the teacher, and how it is distilled.

    `{"layers": 4, "hidden": 384}` is complete: every other field has the paper's default [ETD §4.1].
    Whether the shape fits the teacher is decided by `contract.shape.student`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    # ---- the student's shape
    layers: Count
    """Transformer layers of the student, at most the teacher's."""
    hidden: Count
    """Hidden size: a multiple of the teacher's number of heads, at most the teacher's hidden size."""
    ffn: Count | None = None
    """Size of the feed-forward layer; none means 4 × hidden."""

    # ---- extraction [ETD §3.1, §3.2]
    mode: Mode = "impt"
    """Which neurons are kept: `impt` the most important, `rand` a random draw, `none` no extraction (random init)."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1), BeforeValidator(_no_bool)] = 0
    """Seed of everything random: the draw of `rand`, masking, new weights, data order, dropout."""
    layer_selection: Literal["uniform", "top", "bottom", "measured"] | tuple[Count, ...] = "uniform"
    """Which teacher layers are kept: a rule, or a list of 1-based teacher layers, ascending. `measured` (beyond the
    paper) looks for those whose student, fitted in closed form, has the lowest loss on training text."""
    reverse: tuple[Neuron, ...] = ()
    """Ablation [ETD Table 2]: keep the LEAST important neurons of these kinds."""
    hidden_consistency: bool = True
    """One set of hidden dimensions for the whole model. `false` is the paper's wo-hidn-con ablation."""
    importance_sentences: Count = 10_000
    """Sentences scored for `impt`: the first ones of the corpus, in file order."""
    importance_reduction: Literal["per_token", "per_sequence", "per_batch"] = "per_token"
    """Over what |h · dL/dh| is summed before the absolute value is taken."""
    mlm_head_steps: Count = 200
    """Steps to fit an MLM head on the frozen teacher, when its checkpoint has none; 16 × 128 tokens each."""
    refit: Refit = "none"
    """Beyond the paper: what is solved for in closed form after the cut, on training text, each level including those
    before it: `projection` (the loss's W), `outputs` (attention-out and FFN-out), `norms` (LayerNorms), `all` (queries,
    keys, values and FFN-in too, each head in its best directions)."""

    # ---- what it learns from
    objective: Objective = "last_layer"
    """Distillation loss: `last_layer` [ETD Eq. 4], `tinybert` (uniform layers) or `minilm` (last-layer relations)."""
    tinybert_compat: bool = False
    """Average the attention and hidden losses over padded entries too, as the public TinyBERT code does."""
    teacher: Reference = "embedded"
    """`embedded` (the packaged all-MiniLM-L6-v2), a hub id (`org/name` or `org/name@commit`), a service's own
    name for one, or from the shell a local folder."""
    corpus: Reference = "embedded"
    """`embedded` (packaged Wikipedia summaries), a hub data set (`org/name[:config][@revision]`), a service's own
    name for one, or from the shell local text, JSON-lines or parquet files, or a folder of `etd-ds data prepare`."""
    seq_length: Annotated[int, Field(ge=8, le=65536), BeforeValidator(_no_bool)] = 512
    """Tokens per sequence, [CLS] and [SEP] included."""
    layout: Literal["packed", "pairs"] = "packed"
    """How text becomes sequences: `packed` fills them with whole documents and parts of them, each attending to
    itself; `pairs` makes [CLS] A [SEP] B [SEP] of sentences with segment ids, as BERT's pre-training does.
    A corpus prepared before has its own."""
    validation_sequences: Annotated[int, Field(ge=0, le=100_000), BeforeValidator(_no_bool)] = 128
    """Held-out sequences on which the loss is measured before, during and after training; never trained on."""

    # ---- the schedule
    batch_size: Count = 128
    """Sequences per optimizer step over all GPUs."""
    micro_batch_size: Count | None = None
    """Sequences per GPU and forward pass; none means chosen from the hardware and the sequence length."""
    steps: Count | None = None
    """Optimizer steps. Give this or `epochs`, not both."""
    epochs: Annotated[float, Field(gt=0, le=10_000), BeforeValidator(_no_bool)] | None = None
    """Passes over the corpus; the default is 5 when `steps` is not given."""
    learning_rate: Annotated[float, Field(gt=0, le=1), BeforeValidator(_no_bool)] = 1e-4
    """Peak learning rate of AdamW."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1), BeforeValidator(_no_bool)] = 0.1
    """Share of the steps over which the rate rises from 0; it then falls linearly to 0."""
    weight_decay: Annotated[float, Field(ge=0, le=1), BeforeValidator(_no_bool)] = 0.01
    """AdamW's decoupled weight decay; not applied to biases and LayerNorms."""
    max_grad_norm: Annotated[float, Field(gt=0), BeforeValidator(_no_bool)] = 1.0
    """Gradients are clipped to this global norm."""
    dropout: Annotated[float, Field(ge=0, lt=1), BeforeValidator(_no_bool)] = 0.0
    """Dropout of the student's hidden states while it trains; attention probabilities are never dropped."""

    # ---- how it runs
    precision: Precision = "auto"
    """`auto` takes bf16, else fp16, on GPUs that can, else fp32."""
    gpus: Annotated[int, Field(ge=1, le=1024), BeforeValidator(_no_bool)] = 1
    """Ranks per node: one per GPU; on a machine without GPUs, that many CPU ranks."""
    nodes: Annotated[int, Field(ge=1, le=4096), BeforeValidator(_no_bool)] = 1
    """Machines; each runs `gpus` ranks."""
    deepspeed: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_]{0,63}$")] = "zero2"
    """Name of a file in `ds_configs/`, without `.json`."""
    shard_teacher: bool = False
    """Split the teacher's parameters over the ranks too, for one that does not fit on a GPU; each step gathers them."""
    torch_compile: bool = False
    """On a GPU: fuse what acts on each token alone by torch.compile; the first steps then take minutes."""
    checkpoint_every: Count = 500
    """Steps between checkpoints."""
    keep_checkpoints: Count = 3
    """How many of the newest checkpoints are kept; what interruptions left counts apart."""
    validate_every: Count = 500
    """Steps between measurements of the held-out loss."""
    log_every: Count = 10
    """Steps between progress events."""
    tensorboard: bool = False
    """Write the numbers of the progress events for TensorBoard too, into the run folder's `tensorboard/`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise _refuse("steps", "steps or epochs, not both", f"steps {self.steps} and epochs {self.epochs}")
        if not isinstance(self.layer_selection, str):
            chosen = self.layer_selection
            if len(chosen) != self.layers or any(a >= b for a, b in itertools.pairwise(chosen)):
                wanted = f"{self.layers} different teacher layers (as many as `layers`), ascending"
                raise _refuse("layer_selection", wanted, list(chosen))
        if len(set(self.reverse)) != len(self.reverse):
            raise _refuse("reverse", "each kind at most once", list(self.reverse))
        if self.mode != "impt" and self.reverse:
            raise _refuse("reverse", "nothing, since only mode 'impt' has scores to reverse", list(self.reverse))
        if self.layer_selection == "measured" and (self.mode == "none" or not self.hidden_consistency):
            wanted = "another rule unless the student is cut from the teacher with hidden_consistency"
            raise _refuse("layer_selection", wanted, "'measured'")
        if self.refit != "none" and (self.mode == "none" or not self.hidden_consistency):
            wanted = "'none' unless the student is cut from the teacher with hidden_consistency"
            raise _refuse("refit", wanted, repr(self.refit))
        if self.refit == "projection" and self.objective == "minilm":
            raise _refuse("refit", "another level for objective 'minilm', whose loss has no projection", "'projection'")
        if self.tinybert_compat and self.objective == "minilm":
            raise _refuse("tinybert_compat", "false for objective 'minilm', which has no such variant", True)
        if self.batch_size % self.world_size:
            wanted = f"a multiple of the {self.world_size} ranks (gpus × nodes)"
            raise _refuse("batch_size", wanted, self.batch_size)
        per_rank = self.batch_size // self.world_size
        if self.micro_batch_size is not None and per_rank % self.micro_batch_size:
            raise _refuse("micro_batch_size", f"a divisor of {per_rank} (batch_size / ranks)", self.micro_batch_size)
        return self

    def public(self) -> JobSpec:
        """The same spec without this machine's paths."""
        return self.model_copy(update={name: public_name(getattr(self, name)) for name in ("teacher", "corpus")})

    def alike(self) -> str:
        """A hash of all that specs must agree in to be trained together: what is not `OWN`, and the ranks."""
        own = OWN - {"gpus", "nodes", "deepspeed"}
        return hashlib.sha256(self.model_dump_json(exclude=set(own)).encode()).hexdigest()

    @property
    def world_size(self) -> int:
        """Ranks over all nodes."""
        return self.gpus * self.nodes

    def total_steps(self, sequences: int) -> int:
        """Optimizer steps of the run, for a corpus of that many training sequences."""
        if self.steps is not None:
            return self.steps
        epochs = 5.0 if self.epochs is None else self.epochs
        return max(1, math.ceil(epochs * sequences / self.batch_size))
