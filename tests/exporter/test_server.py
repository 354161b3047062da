"""HTTP: what each path answers, and that nobody can keep others from an answer."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

from perseusd.errors import ConfigurationError
from perseusd.exporter import server as serving
from perseusd.exporter.main import address, main
from perseusd.exporter.server import Server


@pytest.fixture
def serve(snapshot_of):
    """Serves a status, or an error, until the test is over."""
    running = []

    def start(status, error=None) -> Server:
        made = Server("127.0.0.1", 0, lambda: snapshot_of(status, error))
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        running.append(made)
        return made

    yield start
    for made in running:
        made.shutdown()
        made.server_close()


def get(server: Server, path: str, accept: str = "") -> tuple[int, str, str]:
    url = f"http://127.0.0.1:{server.server_port}{path}"
    request = urllib.request.Request(url, headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def idle(server: Server) -> socket.socket:
    """A connection that says nothing."""
    return socket.create_connection(("127.0.0.1", server.server_port))


def until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_paths(serve, status) -> None:
    """Metrics in the format that was asked for; a query is ignored; what there is, for the rest."""
    server = serve(status)
    code, kind, text = get(server, "/metrics?debug=1")
    assert (code, kind.split(";")[0]) == (200, "text/plain")
    assert "perseusd_up 1.0" in text
    code, kind, text = get(server, "/metrics", "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")
    assert get(server, "/")[0] == 200
    assert get(server, "/../etc/passwd")[0] == 404


def test_verdicts_are_503_with_what_is_wrong(serve, status) -> None:
    """Alive and not ready; then neither."""
    status["daemon"]["clock_process"] = "dead"
    server = serve(status)
    assert get(server, "/healthz")[0] == 200
    code, kind, text = get(server, "/readyz")
    assert (code, kind.split(";")[0]) == (503, "application/json")
    told = json.loads(text)
    assert told["ok"] is False
    assert "perseusd-clock is dead" in told["wrong"][0]
    silent = serve(None, "no such socket")
    for path in ("/healthz", "/readyz"):
        code, _, text = get(silent, path)
        assert code == 503
        assert json.loads(text)["wrong"] == ["no such socket"]
    assert get(silent, "/metrics")[0] == 200


def test_nothing_can_be_changed(serve, status) -> None:
    """There is GET, and no other method."""
    server = serve(status)
    with idle(server) as connection:
        connection.sendall(b"POST /metrics HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
        assert b" 501 " in connection.makefile("rb").readline()


def test_connections_beyond_the_most_are_turned_away_and_counted(serve, status) -> None:
    """Those that are open stay; when they have gone, there is room."""
    server = serve(status)
    held = [idle(server) for _ in range(serving.MOST_CONNECTIONS)]
    until(lambda: len(server._open) == serving.MOST_CONNECTIONS)
    with idle(server) as refused:
        assert refused.recv(1) == b""
    for connection in held:
        connection.close()
    until(lambda: not server._open)
    assert "perseusd_exporter_connections_refused_total 1.0" in get(server, "/metrics")[2]


def test_whoever_holds_connections_makes_room(serve, status, monkeypatch) -> None:
    """Silent ones that are old: a scraper gets its answer, the oldest is hung up on."""
    monkeypatch.setattr(serving, "LONGEST_S", 0.0)
    server = serve(status)
    held = [idle(server) for _ in range(serving.MOST_CONNECTIONS)]
    until(lambda: len(server._open) == serving.MOST_CONNECTIONS)
    assert get(server, "/healthz")[0] == 200
    held[0].settimeout(10)
    assert held[0].recv(1) == b""
    for connection in held:
        connection.close()


@pytest.mark.parametrize(
    ("listen", "meant"),
    [
        ("127.0.0.1:9", ("127.0.0.1", 9)),
        (":80", ("", 80)),
        ("[::1]:0", ("::1", 0)),
    ],
)
def test_addresses(listen, meant) -> None:
    """IPv6 in brackets, and nothing for all interfaces."""
    assert address(listen) == meant


@pytest.mark.parametrize("listen", ["10612", "a:b", "::1:80", "a:70000", "[::1]", ""])
def test_addresses_that_are_none(listen) -> None:
    """The error says how one is written."""
    with pytest.raises(ConfigurationError, match="--listen"):
        address(listen)


def test_an_address_in_use_is_a_configuration_error(serve, status, tmp_path, capsys) -> None:
    """Named, with exit code 78."""
    taken = serve(status).server_port
    arguments = ["--listen", f"127.0.0.1:{taken}", "--runtime-dir", str(tmp_path)]
    assert main(arguments) == 78
    assert f"--listen 127.0.0.1:{taken}" in (said := capsys.readouterr().err)
    assert "is another exporter running?" in said
    assert main(["--listen", "192.0.2.1:1", "--runtime-dir", str(tmp_path)]) == 78
    assert "another exporter" not in capsys.readouterr().err, "an address that is not this host's"


def test_options_are_written_out(capsys) -> None:
    """The beginning of one is refused with its whole name."""
    with pytest.raises(SystemExit) as ended:
        main(["--log", "error"])
    assert ended.value.code == 2
    assert "did you mean --log-level?" in capsys.readouterr().err
