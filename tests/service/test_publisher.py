"""Which jobs are looked at for news, and which are removed for their age."""

from __future__ import annotations

import time

import pytest

from etd_ds.contract import rundir, spec
from service.app import create_app
from service.database import Database
from service.publisher import _AT_ONCE, Publisher
from service.queue import Outcome, Queue
from service.settings import Settings
from service.status import Verdict
from service.store import Job, Store


class Bucket:
    """Stands in for S3; `meanwhile` happens during the next look."""

    def __init__(self):
        self.looked = []
        self.meanwhile = None

    def publish(self, run, *, settled):
        self.looked.append((run.root.name, settled))
        if self.meanwhile is not None:
            happen, self.meanwhile = self.meanwhile, None
            happen()
        return True


class Away(Bucket):
    """Stands in for S3 that does not answer."""

    def remove(self, folder):
        pass


@pytest.fixture
def settings(tmp_path):
    made = Settings(data_dir=tmp_path, cache=tmp_path / "cache")
    made.prepare()
    return made


@pytest.fixture
def store(settings):
    database = Database(settings.database_url)
    database.create()
    yield Store(database)
    database.close()


def test_a_job_that_ended_is_looked_at_again_only_when_there_may_be_news(settings, store):
    store.add(Job(id="a", spec=spec.JobSpec(layers=1, hidden=12), ranks=1, created=time.time()))
    rundir.publish_json(rundir.RunDir(settings.runs / "a").plan, {})
    queue, bucket = Queue(store._database), Bucket()
    publisher = Publisher(settings, store, bucket, discard=None)
    queue.register("here", host="", count=1, lost_after=0.0)

    def revise():  # as any server does when it has made one
        (settings.revised / "a").touch()

    def train():
        assert queue.settle(queue.claim("here", "me", 60), "me", [Outcome(Verdict("failed", "", "x"))])

    def rounds():
        before = len(bucket.looked)
        for _ in range(3):
            publisher.round()
        return bucket.looked[before:]

    assert rounds() == [("a", True)] * 3
    train()
    assert rounds() == [("a", True)]
    store.ask("a", "retry")
    train()
    assert rounds() == [("a", True)], "it ended twice between two rounds"
    bucket.meanwhile = revise
    revise()
    assert rounds() == [("a", True)] * 2, "what came while it was looked at counts"

    def fail():
        raise FileNotFoundError

    bucket.meanwhile = fail
    revise()
    assert rounds() == [("a", True)] * 2
    assert not list(settings.revised.iterdir())


def test_only_what_ended_long_ago_is_removed_and_so_much_at_a_time(tmp_path):
    day, now = 86400, time.time()
    app = create_app(Settings(data_dir=tmp_path, cache=tmp_path / "cache", keep_days=30))
    here = app.state.context
    settings, store, publisher = here.settings, here.store, here.publisher
    old, young = now - 30 * day - 60, now - 30 * day + 60
    stay = {"queued": ("queued", None), "paused": ("paused", None), "running": ("running", None)}
    stay |= {f"young-{status}": (status, young) for status in ("succeeded", "failed", "cancelled")}
    go = {f"old-{status}": (status, old) for status in ("succeeded", "failed", "cancelled")}
    go |= {f"more-{number:02}": ("failed", old + 1 + number) for number in range(_AT_ONCE)}
    for name, (status, ended) in (stay | go).items():
        job = Job(id=name, spec=spec.JobSpec(layers=1, hidden=12), ranks=1, created=old, status=status, ended=ended)
        store.add(job)
        rundir.publish_json(rundir.RunDir(settings.runs / name).plan, {})
    (settings.incoming / "gone-before").mkdir()  # the server that removed it was killed
    publisher.round()
    assert len(store.ids()) == len(stay) + 3, "the oldest go first"
    assert {f"more-{number:02}" for number in range(_AT_ONCE - 3, _AT_ONCE)} < store.ids()
    publisher.round()
    assert store.ids() == {folder.name for folder in settings.runs.iterdir()} == set(stay)
    assert not list(settings.incoming.iterdir())
    store.ask("young-failed", "retry")
    assert not store.delete("young-failed", ended_before=now), "it was asked for again"


def test_while_the_bucket_is_away_jobs_do_not_go_one_after_the_other(tmp_path):
    settings = Settings(data_dir=tmp_path, cache=tmp_path / "cache", keep_days=1)
    store = create_app(settings).state.context.store
    for name in ("a", "b"):
        job = Job(id=name, spec=spec.JobSpec(layers=1, hidden=12), ranks=1, created=1.0, status="failed", ended=1.0)
        store.add(job)

    def discard(job_id, *, ended_before):
        (settings.incoming / f"gone-{job_id}").mkdir()
        return store.delete(job_id, ended_before=ended_before)

    publisher = Publisher(settings, store, Away(), discard)
    for _ in range(2):
        publisher.round()
        assert store.ids() == {"b"}
