"""A stand-in daemon: real ROUTER sockets under a runtime directory, canned answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import zmq

Answer = Callable[[Any], list[bytes] | None]


class StandIn:
    """Answers every request on both sockets with `answer(request)`; None: no answer at all."""

    def __init__(self, runtime_dir: Path) -> None:
        self.runtime_dir = runtime_dir
        self.requests: list[Any] = []
        self.answer: Answer = lambda request: None
        self._context = zmq.Context()
        self._sockets = [self._bound(name) for name in ("status", "control", "hooks")]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def answers(self, value: Mapping[str, object]) -> None:
        self.answer = lambda request: [json.dumps(value).encode()]

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        for socket in self._sockets:
            socket.close(linger=0)
        self._context.term()

    def _bound(self, name: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        socket.bind(f"ipc://{self.runtime_dir}/{name}.sock")
        return socket

    def _serve(self) -> None:
        poller = zmq.Poller()
        for socket in self._sockets:
            poller.register(socket, zmq.POLLIN)
        while not self._over.is_set():
            for socket, _ in poller.poll(20):
                *envelope, payload = socket.recv_multipart()
                self.requests.append(json.loads(payload))
                frames = self.answer(self.requests[-1])
                if frames is not None:
                    socket.send_multipart([*envelope, *frames])


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("PERSEUS_RUNTIME_DIR", str(tmp_path))
    daemon = StandIn(tmp_path)
    yield daemon
    daemon.close()


@pytest.fixture
def status() -> dict[str, Any]:
    """A daemon that acts, with one GPU and one job in hold."""
    return {
        "daemon": {
            "version": "0.1.0",
            "uptime_s": 93784.0,
            "mode": "act",
            "clock_process": "alive",
            "emulated": False,
            "refused": [],
        },
        "gpus": [
            {
                "uuid": "GPU-0001",
                "name": "Test GPU",
                "clock_mhz": 1095,
                "requested_mhz": 1110,
                "power_w": 251.4,
                "energy_j": 123456.0,
                "holder": "job-a",
                "state": "leased",
                "reasons": ["sw_power_cap"],
                "emulated": False,
                "mig": False,
            }
        ],
        "jobs": [
            {
                "id": "job-a",
                "state": "hold",
                "ranks": 1,
                "expected_ranks": 1,
                "missing_ranks": [],
                "iteration": 41,
                "iteration_time_s": 2.817,
                "deadline_s": 2.83,
                "critical_path": [],
                "stragglers": [],
                "saving": 0.123,
                "saving_low": 0.11,
                "saving_high": 0.135,
                "slowdown": None,
                "slowdown_low": None,
                "slowdown_high": None,
                "energy_saved_j": 5000.0,
                "why": "",
                "time_source": "cuda_event",
                "states": [{"state": "baseline", "since_iteration": 0}],
                "plan": None,
            }
        ],
    }
