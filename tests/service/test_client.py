"""The Python client before a service that is being restarted."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from service.client import Client, ServiceError

EVENT = b'id: 7\nevent: status\ndata: {"type": "status", "status": "succeeded"}\n\n'


def serve(statuses: list[int]) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = statuses.pop(0)
            self.send_response(status)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(EVENT if status == 200 else b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_a_proxy_that_says_so_is_asked_again_and_a_refusal_is_not():
    server = serve([503, 502, 200, 404])
    with Client(f"http://127.0.0.1:{server.server_port}") as client:
        assert [event["status"] for event in client.events("job")] == ["succeeded"]
        with pytest.raises(ServiceError) as refused:
            next(client.events("job"))
        assert refused.value.status == 404
    server.shutdown()
    server.server_close()
