"""The Hugging Face Hub's read protocol, so that its clients download students from here: `HF_ENDPOINT=http://host/hf`.

Repositories are `students/<job id>`; revisions are `main` (distilled), `init` (extracted) and `step-N` (a checkpoint
that is kept; it becomes a student when it is first asked for). Clients tell cases apart by the headers X-Error-Code and
X-Error-Message, and want X-Repo-Commit on every file.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse

from etd_ds.contract import rundir
from service import artifacts, revisions
from service.problems import Problem, documented
from service.revisions import Revision
from service.routes.access import Caller, identify
from service.routes.context import Here, published, read_body
from service.routes.downloads import elsewhere, media_type, respond

OWNER = "students"

router = APIRouter(prefix="/hf", tags=["hub"], responses=documented(401, 403, 404, 503))


def refuse(status: int, code: str | None, message: str, **headers: str) -> Problem:
    """A problem in the words that the Hub's clients understand."""
    plain = "".join(char if " " <= char <= "~" else "?" for char in message)
    known = {"X-Error-Message": plain} | ({"X-Error-Code": code} if code else {})
    return Problem(status, code or "unauthenticated", message, headers={**known, **headers})


def _caller(request: Request, here: Here) -> Caller | None:
    """Who asks; `None` for somebody without a key, to whom nothing exists. Raises for a wrong key."""
    try:
        return identify(request, here)
    except Problem as problem:
        if problem.status != 401:
            raise
        if "authorization" in request.headers:
            raise refuse(401, None, "Invalid credentials in Authorization header") from None
        return None


Who = Annotated[Caller | None, Depends(_caller)]


def _open(who: Caller | None, owner: str, name: str) -> rundir.RunDir:
    """The run folder of a repository. Absent and another tenant's are the same."""
    if who is None:
        raise refuse(401, "RepoNotFound", "Repository not found, or a key is needed")
    job = who.here.store.get(name, tenant=who.tenant) if owner == OWNER else None
    if job is None:
        raise refuse(404, "RepoNotFound", "Repository not found")
    if "students:read" not in who.scopes:
        raise refuse(403, "GatedRepo", "This key lacks the scope students:read")
    return who.here.run(job)


def _pick(who: Caller | None, owner: str, name: str, revision: str) -> Revision:
    """A revision of a repository."""
    run = _open(who, owner, name)
    found = published(who.here, run, revision) if who is not None else None
    if found is None:
        raise refuse(404, "RevisionNotFound", f"No such revision; there is {', '.join(revisions.of_run(run))}")
    return found


def _entry(at: Revision, name: str) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": at.files[name].size, "oid": at.object_id(name)}
    return entry | ({"lfs": _large(at, name)} if at.is_large(name) else {})


def _large(at: Revision, name: str) -> dict[str, Any] | None:
    if not at.is_large(name):
        return None
    digest = at.files[name]
    return {"size": digest.size, "sha256": digest.sha256, "oid": digest.sha256, "pointerSize": 134}


@router.head("/{owner}/{name}/resolve/{revision}/{path:path}", include_in_schema=False)
@router.get("/{owner}/{name}/resolve/{revision}/{path:path}", response_class=StreamingResponse)
def resolve(owner: str, name: str, revision: str, path: str, request: Request, who: Who, here: Here) -> Response:
    """One file of a revision."""
    at = _pick(who, owner, name, revision)
    content = artifacts.file(at.folder, path, at.files, here.storage.piece)
    if content is None:
        raise refuse(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": at.commit})
    tag = content.etag if at.is_large(path) else at.object_id(path)
    headers = {
        "X-Repo-Commit": at.commit,
        "X-Linked-Size": str(content.size),
        "X-Linked-ETag": f'"{tag}"',
        "Content-Disposition": f'attachment; filename="{path}"',
        "Cache-Control": "private, max-age=31536000, immutable" if revision == at.commit else "private, no-cache",
    }
    content = artifacts.Content(content.pieces, content.sizes, tag)
    sent_on = elsewhere(request, here, at.folder / path, content, headers)
    return sent_on or respond(request, content, media_type(path), headers)


@router.get("/api/models/{owner}/{name}")
@router.get("/api/models/{owner}/{name}/revision/{revision}")
def model_info(owner: str, name: str, who: Who, revision: str = revisions.MAIN, blobs: bool = False) -> dict[str, Any]:
    """What a repository is, and which files a revision of it has."""
    at = _pick(who, owner, name, revision)
    siblings: list[dict[str, Any]] = [{"rfilename": file} for file in sorted(at.files)]
    if blobs:
        for one in siblings:
            file = one["rfilename"]
            one |= {"size": at.files[file].size, "blobId": at.object_id(file), "lfs": _large(at, file)}
    return {
        "id": f"{owner}/{name}",
        "modelId": f"{owner}/{name}",
        "author": owner,
        "sha": at.commit,
        "lastModified": at.date,
        "createdAt": at.date,
        "private": True,
        "gated": False,
        "disabled": False,
        "tags": ["transformers", "safetensors", "bert"],
        "library_name": "transformers",
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
    }


@router.get("/api/models/{owner}/{name}/tree/{revision}")
@router.get("/api/models/{owner}/{name}/tree/{revision}/{path:path}")
def tree(owner: str, name: str, revision: str, who: Who, path: str = "") -> list[dict[str, Any]]:
    """The files of a revision; students have no folders."""
    at = _pick(who, owner, name, revision)
    if path.strip("/"):
        raise refuse(404, "EntryNotFound", "A student has no folders", **{"X-Repo-Commit": at.commit})
    return [_entry(at, file) for file in sorted(at.files)]


@router.post("/api/models/{owner}/{name}/paths-info/{revision}", responses=documented(413))
async def paths_info(owner: str, name: str, revision: str, request: Request, who: Who) -> list[dict[str, Any]]:
    """The entries of the named files; the body is a form."""
    body = await read_body(request, 1 << 20)
    try:
        wanted = parse_qs(body.decode("ascii", "replace"), max_num_fields=1000).get("paths", [])
    except ValueError:
        raise refuse(413, "TooManyPaths", "At most 1000 paths at once") from None
    at = await run_in_threadpool(_pick, who, owner, name, revision)
    return await run_in_threadpool(lambda: [_entry(at, file) for file in wanted if file in at.files])


@router.get("/api/models/{owner}/{name}/refs")
def refs(owner: str, name: str, who: Who) -> dict[str, Any]:
    """The revisions of a repository, as branches."""
    found = revisions.of_run(_open(who, owner, name))
    branches = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": at.commit} for ref, at in found.items()]
    return {"branches": branches, "tags": [], "converts": []}


@router.get("/api/models/{owner}/{name}/auth-check")
def auth_check(owner: str, name: str, who: Who) -> dict[str, Any]:
    """200 when the caller may read the repository."""
    _open(who, owner, name)
    return {}


@router.get("/api/whoami-v2")
def whoami(who: Who) -> dict[str, Any]:
    """Whose key it is."""
    if who is None:
        raise refuse(401, None, "Invalid credentials in Authorization header")
    token = {"displayName": who.name, "role": "read"}
    auth = {"type": "access_token", "accessToken": token}
    return {"type": "user", "name": who.tenant, "id": who.tenant, "fullname": who.tenant, "orgs": [], "auth": auth}
