"""Which jobs are looked at for news."""

from __future__ import annotations

import time

import pytest

from etd_ds.contract import rundir, spec
from service.database import Database
from service.publisher import Publisher
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
    publisher = Publisher(settings, store, bucket)
    queue.register("here", host="", count=1, lost_after=0.0)

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
    bucket.meanwhile = lambda: publisher.again("a")
    publisher.again("a")
    assert rounds() == [("a", True)] * 2, "what came while it was looked at counts"

    def fail():
        raise FileNotFoundError

    bucket.meanwhile = fail
    publisher.again("a")
    assert rounds() == [("a", True)] * 2
