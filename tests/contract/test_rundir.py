"""Publishing is all or nothing, and the run folder says what is missing."""

from pathlib import Path

import pytest

from etd_ds.contract import errors, events, rundir, spec


def test_a_published_file_is_whole_or_the_old_one(tmp_path):
    path = tmp_path / "a" / "b.json"
    rundir.publish_json(path, {"n": 1})
    rundir.publish_json(path, {"n": 2})
    assert '"n": 2' in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["b.json"]


def test_a_failed_publication_leaves_the_old_folder_and_nothing_else(tmp_path):
    target = tmp_path / "student"
    with rundir.publishing(target) as aside:
        (aside / "x").write_text("first")
    with pytest.raises(FileNotFoundError), rundir.publishing(target) as aside:
        (aside / "x").write_text("second")
        (aside / "no" / "such" / "folder").write_text("fails")
    assert (target / "x").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_a_published_folder_replaces_the_old_one_and_is_readable(tmp_path):
    target = tmp_path / "student"
    for text in ("first", "second"):
        with rundir.publishing(target) as aside:
            (aside / "deep").mkdir()
            (aside / "deep" / text).write_text(text)
            (aside / "deep" / text).chmod(0o600)
    assert [p.name for p in (target / "deep").iterdir()] == ["second"]
    assert (target / "deep" / "second").stat().st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_the_job_is_read_back_and_its_absence_is_explained(tmp_path):
    run = rundir.RunDir(tmp_path)
    with pytest.raises(errors.RunFolderError, match=r"job\.json: missing"):
        run.read_job()
    job = spec.JobSpec(layers=2, hidden=96)
    rundir.publish_json(run.job, job)
    assert run.read_job() == job
    run.job.write_text("{}")
    with pytest.raises(errors.RunFolderError, match="not a valid JobSpec"):
        run.read_job()
    assert run.read_result() is None


def test_digest_is_sha256_of_the_content(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    digest = rundir.digest(tmp_path / "f")
    assert (digest.size, digest.sha256[:8]) == (3, "ba7816bf")


def test_a_full_disk_is_an_error():
    with pytest.raises(OSError, match="No space left"):
        events.append(Path("/dev/full"), events.Warn(message="x"))
