"""The trainer, with two changes: a silent peer is given up after seconds, and step 4 waits for the file `go`."""

import datetime
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

import os  # noqa: E402

from etd_ds import train  # noqa: E402
from etd_ds.contract import events  # noqa: E402
from etd_ds.engine import ranks  # noqa: E402

ranks.TIMEOUT = datetime.timedelta(seconds=4)
whole = events.append


def append(path, event):
    whole(path, event)
    while isinstance(event, events.Step) and event.step == 4 and not (path.parent / "go").exists():
        time.sleep(0.05)


events.append = append
os._exit(train.main())
