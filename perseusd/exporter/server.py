"""HTTP for scrapers and probes: /metrics, /healthz, /readyz, and nothing that anyone could change.

Connections are few, short and each served by a thread of its own: who is slow, or one of very many,
keeps nobody else waiting.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client.exposition import choose_encoder

from perseusd import __version__
from perseusd.exporter.collector import registry
from perseusd.exporter.health import alive, ready
from perseusd.exporter.snapshot import Snapshot

log = logging.getLogger(__name__)

MOST_CONNECTIONS: Final = 16

LONGEST_S: Final = 10.0
"""A connection that is older makes room for a new one where there is none."""

SILENCE_S: Final = 5.0
"""So long a peer may say, or take, nothing."""

INDEX: Final = """perseusd-exporter

/metrics  for Prometheus
/healthz  200 while the daemon's loop answers
/readyz   200 while the daemon can do its work
"""


class Server(ThreadingHTTPServer):
    """Listens from the start. OSError where it cannot.

    snapshot: what is told; may take a second, and is asked by several threads at once.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, host: str, port: int, snapshot: Callable[[], Snapshot]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._open: dict[Any, float] = {}
        """Connections, the oldest first, and when each was made."""
        self._lock = threading.Lock()
        self._turned_away = 0
        self._source = snapshot
        self.registry = registry(self.snapshot)
        super().__init__((host, port), Handler)

    def snapshot(self) -> Snapshot:
        return replace(self._source(), turned_away=self._turned_away)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if not self._has_room():
                self._turned_away += 1
                self.shutdown_request(request)
                return
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def _has_room(self) -> bool:
        if len(self._open) < MOST_CONNECTIONS:
            return True
        oldest, since_s = next(iter(self._open.items()))
        if time.monotonic() - since_s < LONGEST_S:
            return False
        del self._open[oldest]
        _hang_up(oldest)  # its thread ends with the connection
        return True

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection from %s ended early", client_address[0], exc_info=True)

    def server_bind(self) -> None:
        """Without the base class's look-up of our own name, which may ask the network."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


class Handler(BaseHTTPRequestHandler):
    """One request of one connection."""

    server: Server
    timeout = SILENCE_S
    server_version = f"perseusd-exporter/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        match path:
            case "/metrics":
                encode, kind = choose_encoder(self.headers.get("Accept", ""))
                self._answer(200, kind, encode(self.server.registry))
            case "/healthz":
                self._verdict(alive)
            case "/readyz":
                self._verdict(ready)
            case "/":
                self._answer(200, "text/plain; charset=utf-8", INDEX.encode())
            case _:
                self._answer(404, "text/plain; charset=utf-8", INDEX.encode())

    def _verdict(self, judge: Callable[[Snapshot], list[str]]) -> None:
        snapshot = self.server.snapshot()
        wrong = judge(snapshot)
        body = {
            "ok": not wrong,
            "wrong": wrong,
            "daemon_answered_in_s": round(snapshot.took_s, 4) if snapshot.error is None else None,
        }
        kind = "application/json; charset=utf-8"
        self._answer(503 if wrong else 200, kind, (json.dumps(body) + "\n").encode())

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        log.debug(format, *arguments)


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has gone by itself
