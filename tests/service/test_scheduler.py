"""What is left of servers that died, and what is not theirs to remove."""

from __future__ import annotations

import time

from etd_ds.contract import spec
from service.database import Database
from service.scheduler import sweep
from service.settings import Settings
from service.storage import Folder
from service.store import Job, Store


def test_a_database_without_jobs_removes_no_trained_ones(tmp_path):
    settings = Settings(data_dir=tmp_path, cache=tmp_path / "cache")
    settings.prepare()
    database = Database(settings.database_url)
    database.create()
    store = Store(database)
    for name in ("trained", "not-begun"):
        (settings.runs / name).mkdir()
    (settings.runs / "trained" / "log.txt").touch()
    sweep(settings, store, Folder())
    assert len(list(settings.runs.iterdir())) == 2, "perhaps they are another database's"
    store.add(Job(id="mine", spec=spec.JobSpec(layers=1, hidden=12), ranks=1, created=time.time()))
    (settings.runs / "mine").mkdir()
    sweep(settings, store, Folder())
    assert [folder.name for folder in settings.runs.iterdir()] == ["mine"]
    database.close()
