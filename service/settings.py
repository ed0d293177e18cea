"""Everything that can be set about a server: the only place where the service reads the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from etd_ds.contract import launch

CPU_SLOTS = 2


@dataclass(frozen=True)
class SlurmOptions:
    """How attempts are handed to a Slurm cluster. Times are in seconds if their name does not say otherwise."""

    nodes: int = 1
    """Most nodes of one job."""
    gpus_per_node: int = 8
    """Most ranks of one job on a node."""
    cpu: bool = False
    """Trainers run on CPUs: no GPUs are asked for."""
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    time_minutes: int = 0
    """Time limit of an attempt; 0 leaves it to the partition."""
    warning: int = 600
    """How long before the time limit the trainer gets SIGUSR1, to write its checkpoint and leave."""
    cpus_per_task: int = 0
    """CPU cores for each rank; 0 leaves it to the cluster."""
    image: str = ""
    """Container image of the trainer (pyxis); empty: it runs on the nodes as they are."""
    lines: tuple[str, ...] = ()
    """Further lines of the batch script: `#SBATCH …` among its options, all others before the ranks are started."""
    python: str = sys.executable
    repository: Path = launch.REPOSITORY
    """Interpreter and checkout of etd-ds, on the nodes or in the image."""
    nice_step: int = 1
    """`nice` of a job = this × (100 - priority), so that the cluster keeps our order; 0 passes nothing on."""
    poll: float = 5.0
    """Time between two looks at the cluster's queue, which see all jobs at once."""
    settle: float = 10.0
    """How long files that a node wrote may take to be seen here."""


@dataclass(frozen=True)
class Settings:
    """One server. Times are in seconds, sizes in bytes."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000
    cache: Path = field(default_factory=launch.default_cache)
    """Teachers, tokenized corpora and importance scores; may be shared by several servers."""
    database: str = ""
    """SQLAlchemy URL; empty means SQLite in the data folder."""

    worker: str = "local"
    """The name under which this process runs jobs; empty: it runs none, and leaves them to workers."""
    lost_after: float = 0.0
    """How long a worker may be silent before its jobs move to other workers; 0: they wait for it."""
    together: int = 1
    """How many queued jobs of a tenant that agree in all that students can share are trained together."""
    slots: int = CPU_SLOTS
    """Ranks that may run at once over all jobs: a job takes `gpus` of them."""
    gpus: int = 0
    """CUDA devices of this machine; 0 means that trainers run on the CPU."""
    slurm: SlurmOptions | None = None
    """The cluster that runs the jobs; none: this machine does."""

    teachers: dict[str, Path] = field(default_factory=dict)
    """Names under which requests may use a local teacher folder."""
    corpora: dict[str, str] = field(default_factory=dict)
    """Names under which requests may use local text."""
    hub: bool = True
    """Whether requests may name teachers and corpora of a model hub."""

    grace: float = 60.0
    """How long a trainer may take to write its checkpoint when it is cancelled or paused, before it is killed."""
    max_retries: int = 2
    """How often a job whose trainer was lost (machine restarted) is started again from its checkpoint."""
    retry_killed: bool = False
    """Whether that holds too for a trainer that was killed (out of memory), not only for a lost one."""
    backoff: float = 5.0
    """Wait before the first such retry; it doubles each time."""
    tick: float = 0.5
    """How often the scheduler looks at running jobs."""
    lease: float = 15.0
    """How long a scheduler may be silent before another one on the same database takes over its jobs."""

    respond_within: float = 300.0
    """How long a request waits for its extraction; then it is answered 202, and the extraction goes on behind it."""
    extraction_timeout: float = 3600.0
    extraction_memory: int = 0
    """Resident memory that the extraction worker may take; 0 means no limit."""
    extraction_waiting: int = 8
    """Requests that may wait for the extraction worker; more are answered 503."""
    quota: int = 0
    """Jobs that a tenant may have queued, running or paused; 0 means no limit."""
    webhook_hosts: frozenset[str] = frozenset()
    """Hosts that webhooks may call although they are private, and over http."""
    webhook_backoff: float = 5.0
    """Wait before a webhook is tried a second time; each further wait is four times as long."""
    streams: int = 100
    """Event streams and followed logs that a tenant may have open; 0 means no limit."""
    rate: int = 0
    """Changes (jobs made, cancelled, …) that a caller may ask for in a minute; 0 means no limit."""
    max_body: int = 64 * 1024
    """Size of a request's body."""

    keep_days: float = 0.0
    """For how many days jobs are kept that have ended; 0: for ever."""
    artifacts: str = ""
    """`s3://BUCKET/PREFIX`, to which students and checkpoints are published; empty: the data folder is all there is."""
    redirect: int = 0
    """For how long addresses of the bucket are valid that clients are sent to; 0: files are sent from here."""

    worker_command: tuple[str, ...] = ()
    """Stands in for the extraction worker (`python -m etd_ds.worker`)."""
    trainer_command: tuple[str, ...] = ()
    """Stands in for `deepspeed … etd_ds/train.py`; `--run FOLDER --cache FOLDER` is added to it."""

    @property
    def runs(self) -> Path:
        return self.data_dir / "jobs"

    @property
    def job_nodes(self) -> int:
        """Most nodes that a job may ask for."""
        return self.slurm.nodes if self.slurm else 1

    @property
    def incoming(self) -> Path:
        """Run folders that are being deleted."""
        return self.data_dir / "incoming"

    @property
    def revised(self) -> Path:
        """Empty files named after jobs that have a new revision, for the server that publishes."""
        return self.data_dir / "revised"

    @property
    def nowhere(self) -> Path:
        """An empty folder in which worker and trainers run, so that no reference means a relative path."""
        return self.data_dir / "nowhere"

    @property
    def server_lock(self) -> Path:
        """Shared by the servers of this data folder. A folder without it is none: perhaps it is not mounted."""
        return self.data_dir / "server.lock"

    @property
    def worker_lock(self) -> Path:
        """Shared by the processes that run jobs under this name."""
        return self.data_dir / "workers" / f"{self.worker or 'none'}.lock"

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data_dir / 'service.db'}"

    def prepare(self) -> None:
        """Make the folders of the server."""
        for folder in (self.data_dir, self.runs, self.incoming, self.revised, self.nowhere, self.cache):
            folder.mkdir(parents=True, exist_ok=True)


def environment(name: str, default: str = "") -> str:
    """`ETD_JOBS_<NAME>` of the environment: the server's address and key for the client, defaults for `serve`."""
    return os.environ.get(f"ETD_JOBS_{name}", default)


def traces_wanted() -> bool:
    """Whether OpenTelemetry's variables name a receiver of traces."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return not off and any(os.environ.get(name) for name in names)


def cuda_devices() -> int:
    """CUDA devices of this machine by `nvidia-smi`; 0 if there are none."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def inherited() -> dict[str, str]:
    """The environment that child processes get: ours, without what only the server needs to know."""
    ours = ("ETD_JOBS_", "AWS_", "PGPASS", "OTEL_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}
