"""Published bytes: any range of a content is that slice of it; a tar holds the files and is always the same."""

from __future__ import annotations

import io
import tarfile

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st

from etd_ds.contract import rundir
from service import artifacts
from service.problems import Problem
from service.routes.downloads import respond
from service.storage import Away


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    for name, content in (("b.json", b"{}"), ("a.bin", bytes(range(256)) * 9), ("empty", b""), ("c", b"x" * 512)):
        (folder / name).write_bytes(content)
    return folder, {path.name: rundir.digest(path) for path in folder.iterdir()}


def whole(content):
    return b"".join(content.read(0, content.size))


def test_tar_holds_the_files_and_has_the_length_it_claims(published):
    folder, files = published
    content = artifacts.tar(folder, files)
    data = whole(content)
    assert len(data) == content.size
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == sorted(files)
        for name in files:
            assert tar.extractfile(name).read() == (folder / name).read_bytes()


def test_tar_depends_on_names_and_contents_alone(published, tmp_path):
    folder, files = published
    for name in sorted(files, reverse=True):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    again = artifacts.tar(tmp_path, dict(reversed(files.items())))
    first = artifacts.tar(folder, files)
    assert (whole(again), again.etag) == (whole(first), first.etag)
    (tmp_path / "b.json").write_bytes(b"[]")
    other = artifacts.tar(tmp_path, {**files, "b.json": rundir.digest(tmp_path / "b.json")})
    assert other.etag != first.etag


@given(st.data())
def test_any_range_is_that_slice(published, data):
    content = artifacts.tar(*published)
    start = data.draw(st.integers(0, content.size))
    end = data.draw(st.integers(start, content.size))
    assert b"".join(content.read(start, end)) == whole(content)[start:end]


@pytest.mark.parametrize("name", ["../a.bin", "/etc/passwd", "nothing", ".hidden", "", "a.bin/", "sub/a.bin"])
def test_only_published_names_exist(published, name):
    folder, files = published
    (folder.parent / "secret").write_text("s")
    evil = {**files, "../secret": files["a.bin"], ".hidden": files["a.bin"]}
    assert artifacts.file(folder, name, evil) is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=5-", (5, 10)),
        ("bytes=5-100", (5, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-100", (0, 10)),
        ("bytes=7-3", None),
        ("bytes=0-1,3-4", None),
        ("bytes=-", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
    ],
)
def test_ranges(header, expected):
    assert artifacts.wanted_range(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_ranges_outside(header):
    with pytest.raises(ValueError, match="outside"):
        artifacts.wanted_range(header, 10)


def test_a_file_that_shrank_is_an_error_and_not_a_short_answer(tmp_path):
    (tmp_path / "f").write_bytes(b"123")
    content = artifacts.file(tmp_path, "f", {"f": rundir.FileDigest(size=4, sha256="0" * 64)})
    with pytest.raises(OSError, match="shorter"):
        list(content.read(0, 4))


def test_tags():
    assert artifacts.names_tag('"abc"', "abc")
    assert artifacts.names_tag('"x", W/"abc"', "abc")
    assert artifacts.names_tag("*", "abc")
    assert not artifacts.names_tag("", "abc")
    assert not artifacts.names_tag('"ab"', "abc")


def test_what_cannot_be_read_just_now_may_be_asked_for_again():
    class Far:
        def read(self, start, end):
            raise Away("the network")

    request = Request({"type": "http", "method": "GET", "headers": []})
    with pytest.raises(Problem) as refused:
        respond(request, artifacts.Content((Far(),), (5,), "tag"), "x/y", {})
    assert (refused.value.status, refused.value.code) == (503, "bucket_away")
    assert "Retry-After" in refused.value.headers
