"""Space kept for bad times: given back when the disk is full, so that what failed can still be written down."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

_BYTES = 2 << 20


class Reserve:
    """One file of the data folder."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "reserve"

    def keep(self) -> None:
        """Take the space, if there is plenty and it is not taken."""
        if not self._file.exists() and shutil.disk_usage(self._file.parent).free > 4 * _BYTES:
            fd = os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(fd, 0, _BYTES)
            finally:
                os.close(fd)

    def give_back(self) -> None:
        self._file.unlink(missing_ok=True)


def is_full(error: BaseException) -> bool:
    """Whether an error, of the system or of SQLite, says that the disk is full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "disk is full" in str(error)
