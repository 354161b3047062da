"""A second real user beside somebody's job: what is not its own it can neither lease, read, control
nor end, and its floods are its own loss.

The second user is a process with an unused uid, which tries each thing itself.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from perseus_hooks.events import Goodbye, Introduce, Refusal, Welcome
from perseus_hooks.wire import decode, encode

from perseusd.errors import DaemonUnreachableError

pytestmark = pytest.mark.system

STRANGER = 64_000
ADMINS = "daemon"  # a group that every system has, and this user is not in
ROOTS_GROUP = 0

_AS = """
import json, os, socket, sys, time, zmq  # now: it may not be able to read them later
uid, groups, folder = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
os.setgroups(groups)
os.setgid(uid)
os.setuid(uid)
"""

_ASK = """
context = zmq.Context()
answers = []
for name, request in json.loads(sys.argv[4]):
    asker = context.socket(zmq.REQ)
    asker.connect(f"ipc://{folder}/{name}.sock")
    asker.send(json.dumps(request).encode())
    answers.append(json.loads(asker.recv()) if asker.poll(10_000) else None)
context.destroy(linger=0)
print(json.dumps(answers))
"""

_SAY = """
context = zmq.Context()
dealer = context.socket(zmq.DEALER)
told = json.loads(sys.argv[4])
if told["identity"]:
    dealer.setsockopt(zmq.ROUTING_ID, told["identity"].encode())
dealer.connect(f"ipc://{folder}/hooks.sock")
for message in told["messages"]:
    dealer.send(bytes.fromhex(message))
answers = []
while dealer.poll(told["patience_ms"]):
    answers.append(dealer.recv().hex())
print(json.dumps(answers), flush=True)
if told["stay"]:
    sys.stdin.read()
context.destroy(linger=0)
"""

_TOUCH = """
def outcome(act):
    try:
        act()
        return "done"
    except OSError as error:
        return type(error).__name__
sockets = [f"{folder}/{name}.sock" for name in ("hooks", "status", "control", "record")]
print(json.dumps({
    "list state": outcome(lambda: os.listdir(f"{folder}/state")),
    "write state": outcome(lambda: open(f"{folder}/state/curves/x", "w")),
    "forge intent": outcome(lambda: open(f"{folder}/state/clock/clock-intent.json", "w")),
    "new file": outcome(lambda: open(f"{folder}/x.sock", "w")),
    "write lock": outcome(lambda: open(f"{folder}/perseusd.lock", "a")),
    "write GPUs": outcome(lambda: open(f"{folder}/simulated-gpus", "r+b")),
    **{f"unlink {path[-12:]}": outcome(lambda path=path: os.unlink(path)) for path in sockets},
    **{f"rename {path[-12:]}": outcome(lambda path=path: os.rename(path, path + "2"))
       for path in sockets},
}))
"""

_FLOOD = """
held = []
try:
    for _ in range(900):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"{folder}/hooks.sock")
        held.append(connection)
except OSError:
    pass  # turned away
time.sleep(1)
for connection in held:
    connection.close()
context = zmq.Context()
dealers = []
for _ in range(4):
    dealer = context.socket(zmq.DEALER)
    dealer.connect(f"ipc://{folder}/hooks.sock")
    dealers.append(dealer)
hello, garbage = map(bytes.fromhex, json.loads(sys.argv[4]))
asker = context.socket(zmq.DEALER)
asker.connect(f"ipc://{folder}/status.sock")
sent, end = 0, time.monotonic() + 30
while sent < 6000 and time.monotonic() < end:
    for dealer in dealers:
        for message in (hello, garbage):
            try:
                dealer.send(message, zmq.NOBLOCK)
                sent += 1
            except zmq.Again:
                time.sleep(0.001)
    try:
        asker.send_multipart([b"", b"{}"], zmq.NOBLOCK)
    except zmq.Again:
        pass
print(sent)
context.destroy(linger=0)
"""

_CONNECT = """
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
    connection.settimeout(10)
    try:
        connection.connect(sys.argv[4])
        print(json.dumps(["connected", connection.recv(256).hex()]))
    except OSError as error:
        print(json.dumps([type(error).__name__, ""]))
"""

CONFIG = f"""
[access]
status_readers = ["root"]
admin_group = "{ADMINS}"
"""


def command(body: str, folder: Path, told: object, *groups: int) -> list[str]:
    text = told if isinstance(told, str) else json.dumps(told)
    return [
        sys.executable, "-c", _AS + body, str(STRANGER), json.dumps(groups), str(folder), text
    ]  # fmt: skip


def as_stranger(body: str, folder: Path, told: object = "", *groups: int) -> Any:
    """What the second user's program prints."""
    done = subprocess.run(
        command(body, folder, told, *groups),
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
        cwd="/",
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def served(make_module_rig: Any, helpers: Any) -> Any:
    """A daemon of root's with a job of root's on all GPUs but two."""
    config = helpers.CONFIG.replace("[limits]", "[limits]\nmax_clients_per_user = 64") + CONFIG
    rig = make_module_rig(gpus=helpers.STAGES + 2, config=config)
    rig.start()
    rig.start_job()
    helpers.until(lambda: (rig.job_status() or {}).get("iteration", -1) >= 2)
    return rig


@pytest.fixture(autouse=True)
def _the_job_is_unharmed(served: Any, helpers: Any) -> Iterator[None]:
    before = served.job_status()
    yield
    helpers.until(lambda: served.job_status()["iteration"] >= before["iteration"] + 2)
    after = served.job_status()
    assert (after["id"], after["ranks"], after["missing_ranks"]) == ("root:tiny", 4, [])
    assert "announced" not in [straggler["cause"] for straggler in after["stragglers"]]
    holders = [gpu["holder"] for gpu in served.status()["gpus"]]
    assert holders[:4] == ["root:tiny"] * 4
    assert served.daemon.poll() is None


@pytest.fixture
def say(served: Any) -> Iterator[Callable[..., list[Any]]]:
    """Messages of the second user to the hooks' socket; the answers. It stays until the test's
    end, so that its lease does."""
    staying: list[subprocess.Popen[bytes]] = []

    def say(*messages: Any, identity: str = "", patience_ms: int = 1000) -> list[Any]:
        told = {
            "messages": [encode(message).hex() for message in messages],
            "identity": identity,
            "patience_ms": patience_ms,
            "stay": True,
        }
        process = subprocess.Popen(
            command(_SAY, served.folder, told),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )
        staying.append(process)
        assert process.stdout is not None
        return [decode(bytes.fromhex(answer)) for answer in json.loads(process.stdout.readline())]

    yield say
    for process in staying:
        with process, contextlib.ExitStack() as stack:
            stack.callback(process.kill)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(20) == 0


def test_it_cannot_lease_what_another_holds(served: Any, say: Any, helpers: Any) -> None:
    """The refusal names the first holder; not even a GPU beside it that is free is given."""
    gpus = [served.node.gpus[number].info.uuid for number in (5, 0)]
    welcome, refusal = say(helpers.hello(job="thief", gpus=gpus))
    assert isinstance(welcome, Welcome)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "gpu_held"
    assert "'root:tiny'" in refusal.reason
    assert served.status()["gpus"][5]["holder"] is None


def test_it_cannot_take_a_job_name_or_a_rank(served: Any, say: Any, helpers: Any) -> None:
    """The same names make a job of its own, and who means the first one by its id gets that."""
    say(helpers.hello(job="tiny", rank=0), patience_ms=300)
    say(helpers.hello(job="root:tiny", rank=0), patience_ms=300)
    say(helpers.hello(job="5", rank=0), patience_ms=300)  # as a GPU's index
    helpers.until(lambda: len(served.status()["jobs"]) == 4)
    ids = {job["id"]: job["ranks"] for job in served.status()["jobs"]}
    theirs = ("tiny", "root:tiny", "5")
    assert ids == {"root:tiny": 4, **{f"{STRANGER}:{name}": 1 for name in theirs}}
    for named, meant in (("root:tiny",) * 2, ("5", served.node.gpus[5].info.uuid)):
        for command in ("release", "resume"):
            answer = served.control({"command": command, "name": named})
            assert (answer["ok"], answer["name"]) == (True, meant)
    announced = {"command": "straggler_announce", "job": "root:tiny", "factor": 1.2}
    assert served.control(announced) == {"ok": True}
    ended = {"command": "straggler_end", "job": "root:tiny"}
    assert served.control(ended) == {"ok": True, "changed": True}


def test_it_cannot_end_a_lease(served: Any, say: Any, helpers: Any) -> None:
    """Not by a goodbye, nor by a connection that calls itself by the other's identity."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as victim:
        victim.setsockopt(zmq.LINGER, 500)
        victim.setsockopt(zmq.ROUTING_ID, b"victim")
        victim.connect(f"ipc://{served.folder}/hooks.sock")
        free = served.node.gpus[4].info.uuid
        victim.send(encode(helpers.hello(job="victim", gpus=[free])))
        assert victim.poll(5000)
        assert isinstance(decode(victim.recv()), Welcome)
        assert say(Goodbye(1, 1), identity="victim", patience_ms=500) == []
        answers = say(Goodbye(1, 1), helpers.start(2), patience_ms=500)
        assert all(isinstance(answer, Introduce) for answer in answers)
        assert served.status()["gpus"][4]["holder"] == "root:victim"
        victim.send(encode(Goodbye(1, 1)))
        helpers.until(lambda: served.status()["gpus"][4]["holder"] is None)


def test_it_reads_its_own_alone(served: Any, say: Any, helpers: Any) -> None:
    """Status, configuration and recordings, where readers are named; a member of the readers'
    group reads all."""
    questions = [["status", {"command": "status"}], ["status", {"command": "config"}]]
    say(helpers.hello(job="mine"), patience_ms=300)
    helpers.until(lambda: len(served.status()["jobs"]) == 2)
    status, config = as_stranger(_ASK, served.folder, questions)
    assert [job["id"] for job in status["jobs"]] == [f"{STRANGER}:mine"]
    assert '"root:' not in json.dumps([status["jobs"], status["gpus"], status["ended"]])
    assert {refused["uid"] for refused in status["daemon"].pop("refused")} <= {STRANGER}
    assert "root:" not in json.dumps(status["daemon"])
    assert {gpu["holder"] for gpu in status["gpus"]} == {"another user's job", None}
    assert config["code"] == "not_permitted"
    member, _ = as_stranger(_ASK, served.folder, questions, ROOTS_GROUP)
    assert {job["id"] for job in member["jobs"]} == {"root:tiny", f"{STRANGER}:mine"}
    record = _SAY.replace("hooks.sock", "record.sock")
    told = {"messages": [json.dumps({"command": "record"}).encode().hex()], "identity": ""}
    told |= {"patience_ms": 1500, "stay": False}
    (answer,) = as_stranger(record, served.folder, told)
    assert json.loads(bytes.fromhex(answer))["code"] == "not_permitted"


def test_it_cannot_control(served: Any) -> None:
    """No command whatever; a process of the admin group can, by the kernel's word."""
    commands: list[dict[str, Any]] = [
        {"command": "straggler_announce", "job": "root:tiny", "factor": 2},
        {"command": "straggler_end", "job": "root:tiny"},
        {"command": "memory_list"},
        {"command": "pause"},
        {"command": "resume"},
        {"command": "release", "name": "root:tiny"},
        {"command": "memory_forget", "signature": "x"},
        {"command": "no such"},
    ]
    asked = [["control", command] for command in commands]
    answers = as_stranger(_ASK, served.folder, asked)
    assert [answer["code"] for answer in answers] == ["not_permitted"] * len(commands)
    admins = grp.getgrnam(ADMINS).gr_gid
    (answer,) = as_stranger(_ASK, served.folder, asked[1:2], admins)
    assert answer["ok"] is True


def test_it_cannot_touch_files(served: Any) -> None:
    """State, notes, sockets and the simulated GPUs are the daemon's to write, and state to read."""
    outcomes = as_stranger(_TOUCH, served.folder)
    assert set(outcomes.values()) == {"PermissionError"}, outcomes


def answers(served: Any) -> bool:
    with contextlib.suppress(DaemonUnreachableError):
        return bool(served.status())
    return False


def test_its_floods_are_its_own_loss(served: Any, helpers: Any) -> None:
    """Connections, hellos, garbage and questions, all at once: each is counted against
    it, and the job beside it goes on (as after every test here)."""
    before = served.job_status()["iteration"]
    hello = encode(helpers.hello(job="flood")).hex()
    sent = as_stranger(_FLOOD, served.folder, [hello, b"\xc1 garbage".hex()])
    assert sent >= 6000
    helpers.until(lambda: answers(served))

    def counted() -> dict[str, int]:
        refused = served.status()["daemon"]["refused"]
        return {r["code"]: r["count"] for r in refused if r["uid"] == STRANGER}

    helpers.until(lambda: {"too_many_events", "too_many_connections"} <= set(counted()))
    assert not any(r["uid"] == 0 for r in served.status()["daemon"]["refused"])
    assert served.job_status()["iteration"] > before
    helpers.until(lambda: not any("flood" in job["id"] for job in served.status()["jobs"]))


def test_it_cannot_reach_the_clock_process(served: Any, helpers: Any) -> None:
    """Not by the socket's mode; and with the group's permission, it is let in no more than that."""
    path = served.folder / "clock.sock"
    arguments = ["--socket", str(path), "--allow-user", str(STRANGER + 1)]
    arguments += ["--state-dir", str(served.folder / "clock-state")]
    arguments += ["--simulated", str(served.node.path)]
    process = subprocess.Popen([sys.executable, "-m", "perseusd.clock", *arguments])
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        helpers.until(path.exists)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert stat.S_IMODE((served.folder / "clock-state").stat().st_mode) == 0o700
        assert as_stranger(_CONNECT, served.folder, str(path)) == ["PermissionError", ""]
        group = os.stat(path).st_gid
        assert as_stranger(_CONNECT, served.folder, str(path), group) == ["connected", ""]
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as own:
            own.settimeout(10)
            own.connect(str(path))
            assert own.recv(256)  # root is greeted
        process.terminate()
        assert process.wait(20) == 0


def test_modes(served: Any) -> None:
    """As docs/security.md has them."""
    modes = {
        name: stat.S_IMODE((served.folder / name).stat().st_mode)
        for name in ("hooks.sock", "status.sock", "control.sock", "record.sock", "perseusd.lock")
    }
    assert modes.pop("perseusd.lock") == 0o644
    assert set(modes.values()) == {0o666}
    for folder in ("state", "state/clock"):
        assert stat.S_IMODE((served.folder / folder).stat().st_mode) == 0o700
