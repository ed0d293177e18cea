"""Students as a tar and as single files, with ranges and strong tags."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from service import artifacts, revisions
from service.problems import Problem, documented
from service.routes.access import Caller, Downloader
from service.routes.context import Context, published
from service.storage import Away

Name = Annotated[str, Query(max_length=64)]
"""`main`, `init`, or `step-N` of a kept checkpoint."""

router = APIRouter(tags=["downloads"])

_ANSWERS = documented(401, 403, 404, 409, 416, 503) | {
    206: {"description": "A range"},
    302: {"description": "Elsewhere, for a while"},
    304: {"description": "Not modified"},
}


@router.get("/jobs/{job_id}/student", response_class=StreamingResponse, responses=_ANSWERS)
@router.head("/jobs/{job_id}/student", include_in_schema=False)
def student_tar(job_id: str, request: Request, who: Downloader, revision: Name = revisions.MAIN) -> Response:
    """The student as a tar: the files of a Hugging Face folder, without a folder around them."""
    at = _student(who, job_id, revision)
    content = artifacts.tar(at.folder, at.files, who.here.storage.piece)
    named = {"Content-Disposition": f'attachment; filename="student-{job_id}.tar"'}
    return respond(request, content, "application/x-tar", named)


@router.get("/jobs/{job_id}/student/{name}", response_class=StreamingResponse, responses=_ANSWERS)
@router.head("/jobs/{job_id}/student/{name}", include_in_schema=False)
def student_file(
    job_id: str, name: str, request: Request, who: Downloader, revision: Name = revisions.MAIN
) -> Response:
    """One file of the student."""
    at = _student(who, job_id, revision)
    content = artifacts.file(at.folder, name, at.files, who.here.storage.piece)
    if content is None:
        raise Problem(404, "file_not_found", f"The student has no such file; it has {', '.join(sorted(at.files))}.")
    digest = base64.b64encode(bytes.fromhex(content.etag)).decode()
    more = {"Repr-Digest": f"sha-256=:{digest}:"}
    sent_on = elsewhere(request, who.here, at.folder / name, content, more)
    return sent_on or respond(request, content, media_type(name), more)


def _student(who: Caller, job_id: str, revision: str) -> revisions.Revision:
    run = who.run(job_id)
    found = published(who.here, run, revision)
    if found is None and revision == revisions.MAIN:
        raise Problem(409, "no_student_yet", "The job has not succeeded, so it has no student to download.")
    if found is None:
        there = ", ".join(revisions.of_run(run))
        raise Problem(404, "revision_not_found", f"No such revision; there is {there}, and step-N of kept checkpoints.")
    return found


def media_type(name: str) -> str:
    """The media type of a student's file."""
    ends = {".json": "application/json", ".txt": "text/plain; charset=utf-8", ".md": "text/markdown; charset=utf-8"}
    return next((kind for end, kind in ends.items() if name.endswith(end)), "application/octet-stream")


def elsewhere(
    request: Request, here: Context, path: Path, content: artifacts.Content, more: Mapping[str, str]
) -> Response | None:
    """A redirection of a GET to where the file is kept, if clients are sent there and do not have it yet."""
    if request.method != "GET" or artifacts.names_tag(request.headers.get("if-none-match", ""), content.etag):
        return None
    address = here.storage.address(path, media_type(path.name))
    # who may fetch it is asked anew each time, and the address is not for others' eyes
    private = {"Cache-Control": "private, no-store", "Referrer-Policy": "no-referrer"}
    return None if address is None else RedirectResponse(address, 302, headers={**more, **private})


def respond(request: Request, content: artifacts.Content, kind: str, more: Mapping[str, str]) -> Response:
    """The content, the range of it that was asked for, or only its headers [RFC 9110 §13, §14]."""
    headers = {
        "ETag": f'"{content.etag}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        **more,
    }
    if artifacts.names_tag(request.headers.get("if-none-match", ""), content.etag):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, content.size, 200
    asked = request.headers.get("range")
    current = request.headers.get("if-range", headers["ETag"]) == headers["ETag"]
    if asked and current and request.method == "GET":
        try:
            part = artifacts.wanted_range(asked, content.size)
        except ValueError as error:
            raise Problem(
                416, "bad_range", str(error), headers={"Content-Range": f"bytes */{content.size}", **headers}
            ) from None
        if part is not None:
            start, end, status = *part, 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{content.size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=kind)
    chunks = content.read(start, end)
    try:
        first = next(chunks, b"")  # before the status is sent, so that what is gone is not a cut connection
    except FileNotFoundError:
        raise Problem(404, "file_not_found", "The file is gone: the job was deleted just now, or is damaged.") from None
    except Away:
        raise Problem(503, "bucket_away", "The file is in a bucket that does not answer; try again.") from None
    return StreamingResponse(itertools.chain((first,), chunks), status, headers=headers, media_type=kind)
