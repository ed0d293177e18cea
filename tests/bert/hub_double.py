"""A model hub of one folder per repository on loopback: the few routes that reading a checkpoint needs."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves `root/<org>/<name>/*`; `asked` lists the paths of the requests."""

    def __init__(self, root: Path) -> None:
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, root, body=False)

            def do_GET(self) -> None:
                hub.answer(self, root, body=True)

            def log_message(self, *_args: object) -> None:
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, root: Path, *, body: bool) -> None:
        path = request.path.split("?")[0]
        self.asked.append(path)
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        folder = root.joinpath(*(parts[2:4] if api else parts[:2]))
        if not folder.is_dir():
            send(request, 404, b"", {"X-Error-Code": "RepoNotFound"}, body)
        elif api:
            files = sorted(folder.iterdir())
            listing: object = {
                "id": "/".join(parts[2:4]),
                "sha": COMMIT,
                "siblings": [{"rfilename": f.name} for f in files],
            }
            if "tree" in parts:
                listing = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files]
            send(request, 200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body)
        elif (file := folder / parts[-1]).is_file():
            content = file.read_bytes()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            send(request, 200, content, headers, body)
        else:
            send(request, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body)


def send(request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
    request.send_response(status)
    for name, value in (headers | {"Content-Length": str(len(content))}).items():
        request.send_header(name, value)
    request.end_headers()
    if body:
        request.wfile.write(content)
