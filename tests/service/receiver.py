"""An HTTP server on loopback that takes webhooks and answers them with the statuses it is given, then with 204."""

from __future__ import annotations

import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

Message = tuple[str, dict[str, str], bytes]


class Receiver:
    """`got()` is the next request: its path, headers and body."""

    def __init__(self, *answers: int) -> None:
        self._answers = list(answers)
        self._messages: queue.Queue[Message] = queue.Queue()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver._messages.put((self.path, dict(self.headers), body))
                self.send_response(receiver._answers.pop(0) if receiver._answers else 204)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/hook?token=t0ken"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def got(self) -> Message:
        return self._messages.get(timeout=120)

    @property
    def more(self) -> int:
        return self._messages.qsize()
