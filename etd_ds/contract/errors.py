"""The few errors that cross rooms. Each says what was wanted, what came, and what to do."""

from __future__ import annotations

from typing import Any


class EtdError(ValueError):
    """Bad input that a person can mend. `str(error)` is the whole message; `field` names the culprit.

    `field` is a dotted path into the request (`"hidden"`, `"teacher"`), or `None` when no single field is to blame.
    `code` is stable and machine-readable: scripts may match on it.
    """

    code = "bad_input"

    def __init__(self, message: str, *, field: str | None = None, wanted: Any = None, got: Any = None) -> None:
        super().__init__(message)
        self.field = field
        self.wanted = wanted
        self.got = got

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form, for problem documents and the extraction worker's answer."""
        return {
            "code": self.code,
            "message": str(self),
            "field": self.field,
            "wanted": self.wanted,
            "got": self.got,
        }


class ShapeError(EtdError):
    """The asked student cannot be cut from this teacher."""

    code = "impossible_shape"


class TeacherError(EtdError):
    """The teacher is unknown, not a BERT, has no safetensors, or is damaged."""

    code = "bad_teacher"

    def __init__(self, message: str, *, field: str | None = "teacher", wanted: Any = None, got: Any = None) -> None:
        super().__init__(message, field=field, wanted=wanted, got=got)


class CorpusError(EtdError):
    """The corpus is unknown, empty, too small or damaged."""

    code = "bad_corpus"

    def __init__(self, message: str, *, field: str | None = "corpus", wanted: Any = None, got: Any = None) -> None:
        super().__init__(message, field=field, wanted=wanted, got=got)


class ConfigError(EtdError):
    """A DeepSpeed config holds a key that belongs to the job spec, or one that DeepSpeed would not obey."""

    code = "bad_deepspeed_config"

    def __init__(self, message: str, *, field: str | None = "deepspeed", wanted: Any = None, got: Any = None) -> None:
        super().__init__(message, field=field, wanted=wanted, got=got)


class HardwareError(EtdError):
    """The machine cannot do what the spec asks (a precision, a number of GPUs)."""

    code = "hardware"


class RunFolderError(EtdError):
    """A run folder is missing, half-made or not one of ours."""

    code = "bad_run_folder"


class TrainingError(EtdError):
    """Training cannot go on (NaN, a collapsed loss scale); the message says at which step and what to change."""

    code = "training_failed"
