"""Peers that send what they should not: each is told why, counted, and no one else notices.

Next to them a good job trains and is held all the while: every test ends with a look at it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from perseus_hooks.events import Goodbye, Introduce, Refusal, Welcome
from perseus_hooks.wire import MAX_MESSAGE_BYTES, encode

from perseusd.core.jobs.why import WhyCode, code_of

EVENTS_PER_S = 400  # the good job's ranks send some forty each

_STRANGER = """
import json, os, sys, zmq
os.setuid(int(sys.argv[1]))
context = zmq.Context()
answers = []
for name, payload in (("hooks", bytes.fromhex(sys.argv[3])), ("control", sys.argv[4].encode())):
    socket = context.socket(zmq.REQ if name == "control" else zmq.DEALER)
    socket.connect(f"ipc://{sys.argv[2]}/{name}.sock")
    socket.send(payload)
    answers.append(socket.recv().hex() if socket.poll(5000) else None)
context.destroy(linger=0)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def held(make_module_rig, helpers) -> Any:
    """A daemon that allows root and this user alone, and holds a job; two GPUs are free."""
    config = helpers.CONFIG.replace("[limits]", f"[limits]\nevents_per_s = {EVENTS_PER_S}")
    users = json.dumps(sorted({0, os.getuid()}))
    rig = make_module_rig(
        gpus=helpers.STAGES + 2, config=f"{config}\n[access]\nallow_users = {users}"
    )
    rig.hold()
    return rig


@pytest.fixture(autouse=True)
def _the_good_job_is_served(held, helpers) -> Iterator[None]:
    held.hold()
    before, told = held.job_status(), len(held.log.read_bytes())
    yield
    helpers.until(lambda: len(held.status()["jobs"]) == 1)
    helpers.until(lambda: held.job_status()["iteration"] >= before["iteration"] + 2)
    after = held.job_status()
    assert (after["id"], after["ranks"], after["missing_ranks"]) == (before["id"], 4, [])
    # A busy machine changes the job's own pace, and then it leaves hold; no peer did that.
    said = held.log.read_bytes()[told:].decode(errors="replace").splitlines()
    own = [line for line in said if f"job {after['id']}: " in line]
    left = [line for line in own if "→ release" in line or "hold → " in line]
    assert {code_of(line) for line in left} <= {WhyCode.CHANGED, WhyCode.TOO_SLOW}, left


def free_gpu(held, number: int = 0) -> str:
    return held.node.gpus[-1 - number].info.uuid


def told(peer, held, code: str) -> str:
    """The peer is refused with this code; the reason, which is counted in status."""
    counted = sum(r["count"] for r in held.status()["daemon"]["refused"] if r["code"] == code)
    refusal = peer.hear()
    assert isinstance(refusal, Refusal), refusal
    assert refusal.code == code
    entry = next(r for r in held.status()["daemon"]["refused"] if r["code"] == code)
    assert entry["count"] >= max(1, counted)
    assert entry["reason"].startswith(refusal.reason[:200])
    return refusal.reason


@pytest.mark.parametrize(
    ("payload", "code", "reason"),
    [
        (b"\xc1 garbage", "malformed", "no msgpack value"),
        (b"", "malformed", "no msgpack value"),
        (msgpack.packb({"not": "an array"}), "malformed", "send a msgpack array"),
        (msgpack.packb(["?"]), "malformed", "the tag is"),
        (msgpack.packb(["s", 1, -1, 1, "forward", 0, 0, None, None]), "malformed", "time_ns is -1"),
        (msgpack.packb(["s", 1, 1, 1, "dream", 0, 0, None, None]), "malformed", "'dream'"),
        (msgpack.packb(["w", 1, 0]), "malformed", "Welcome is for the daemon to send"),
        (msgpack.packb(["i"]), "malformed", "Introduce is for the daemon to send"),
        (msgpack.packb(["h", 9]), "version", "major version is 9"),
        (b"x" * (MAX_MESSAGE_BYTES + 1), "oversize", "4097 bytes"),
    ],
)
def test_messages_that_the_wire_does_not_have(held, make_peer, payload, code, reason) -> None:
    """Each is answered with its code and the reason, and counted."""
    peer = make_peer(held)
    peer.send(payload)
    assert reason in told(peer, held, code)


def test_a_message_of_several_frames(held, make_peer) -> None:
    """As a REQ socket would send, by mistake."""
    peer = make_peer(held)
    peer.send(b"", encode(Goodbye(1, 1)))
    assert "2 frames" in told(peer, held, "malformed")


def test_a_huge_message_is_not_even_read(held, make_peer) -> None:
    """The connection is cut; a new one of the same peer is served."""
    peer = make_peer(held)
    peer.send(b"x" * 10_000_000)
    assert peer.hears_nothing(0.3)
    peer.send(b"\xc1")
    assert isinstance(peer.hear(), Refusal)


def test_a_flood_of_garbage_is_two_entries_and_few_lines(held, make_peer, helpers) -> None:
    """Whatever it says: it can neither fill the log nor push out what others were told, and what is
    too much is neither decoded nor answered."""
    lines, entries = len(held.log.read_text()), len(held.status()["daemon"]["refused"])
    peer = make_peer(held)
    for number in range(8000):
        peer.send(b"\xc1" + number.to_bytes(4))
    helpers.until(lambda: (held.refused("without a lease") or {"count": 0})["count"] > 1000)
    answers = 0
    while not peer.hears_nothing(0.2):
        assert isinstance(peer.hear(), Refusal)
        answers += 1
    assert answers < 2000
    assert len(held.status()["daemon"]["refused"]) <= entries + 2
    assert len(held.log.read_text()) - lines < 5000


def test_events_without_a_hello(held, make_peer, helpers) -> None:
    """A client that the daemon does not know is asked to introduce itself, not refused."""
    peer = make_peer(held)
    for number in range(1, 20):
        peer.send(helpers.start(number))
    assert isinstance(peer.hear(), Introduce)
    assert peer.hears_nothing(0.2)  # not once for each


def test_an_unknown_gpu(held, make_peer, helpers) -> None:
    """The refusal names it and those that there are; no job comes of it."""
    peer = make_peer(held)
    peer.send(helpers.hello(gpus=["GPU-nowhere"]))
    assert isinstance(peer.hear(), Welcome)
    reason = told(peer, held, "unknown_gpu")
    assert "'GPU-nowhere' is not on this node" in reason
    assert held.node.gpus[0].info.uuid in reason
    assert len(held.status()["jobs"]) == 1


def test_a_name_in_any_script_is_refused_as_well(held, make_peer, helpers) -> None:
    """256 bytes of UTF-8 are allowed, and quoting them must not break the answer."""
    peer = make_peer(held)
    peer.send(helpers.hello(gpus=["é" * 128]))
    assert isinstance(peer.hear(), Welcome)
    assert "ééé" in told(peer, held, "unknown_gpu")


def test_a_gpu_that_another_job_holds(held, make_peer, helpers) -> None:
    """The refusal names the holder, and the holder keeps it."""
    uuid = held.node.gpus[1].info.uuid
    peer = make_peer(held)
    peer.send(helpers.hello(job="thief", gpus=[free_gpu(held), uuid]))
    assert isinstance(peer.hear(), Welcome)
    reason = told(peer, held, "gpu_held")
    assert uuid in reason
    assert held.job_status()["id"] in reason
    holders = {gpu["uuid"]: gpu["holder"] for gpu in held.status()["gpus"]}
    assert holders[uuid] == held.job_status()["id"]
    assert holders[free_gpu(held)] is None


def test_too_many_events(held, make_peer, helpers) -> None:
    """What is beyond the limit is dropped and counted; only its sender is told."""
    loud, quiet = make_peer(held), make_peer(held)
    loud.send(helpers.hello(job="loud", gpus=[free_gpu(held)]))
    quiet.send(helpers.hello(job="quiet", gpus=[free_gpu(held, 1)]))
    assert isinstance(loud.hear(), Welcome)
    assert isinstance(quiet.hear(), Welcome)
    for number in range(1, 5 * EVENTS_PER_S):
        loud.send(helpers.start(number))
    quiet.send(helpers.start(1))
    assert f"more than {EVENTS_PER_S} events a second" in told(loud, held, "too_many_events")
    deadline = time.monotonic() + 10
    while held.refused("events a second")["count"] < EVENTS_PER_S:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert quiet.hears_nothing(0.1)


def test_a_client_that_changes_jobs_leaves_no_gpu_held(held, make_peer, helpers) -> None:
    """A later hello replaces the earlier one, its GPUs included; a goodbye ends the lease."""

    def holders() -> list[object]:
        return [gpu["holder"] for gpu in held.status()["gpus"][-2:]]

    peer = make_peer(held)
    peer.send(helpers.hello(job="first", gpus=[free_gpu(held)]))
    helpers.until(lambda: str(holders()[1]).endswith(":first"))
    peer.send(helpers.hello(job="second", gpus=[free_gpu(held, 1)]))
    helpers.until(lambda: str(holders()[0]).endswith(":second"))
    assert holders()[1] is None
    peer.send(Goodbye(1, 1))
    helpers.until(lambda: holders() == [None, None])
    assert [job["id"].split(":")[1] for job in held.status()["jobs"]] == ["tiny"]


def test_well_formed_nonsense(held, make_peer, helpers) -> None:
    """Events in no order, with stamps that cannot be: the job they are of stays at full clock."""
    peer = make_peer(held)
    peer.send(helpers.hello(job="odd", stages=1, gpus=[free_gpu(held)]))
    assert isinstance(peer.hear(), Welcome)
    sequence = 0
    for iteration in (0, 1, 2, 2**63 - 1, 5, 4, 4, 4):
        for instruction in ("forward", "iteration", "backward"):
            for time_ns in (0, 2**63 - 1, 1):
                sequence += 1
                fields = [sequence, time_ns, 7, instruction, 2**20 - 1, 0, 5, iteration]
                peer.send(msgpack.packb(["s", *fields]))
                peer.send(msgpack.packb(["e", sequence + 3, time_ns, 7]))
    helpers.until(lambda: any(job["id"].endswith(":odd") for job in held.status()["jobs"]))
    time.sleep(0.3)
    odd = next(job for job in held.status()["jobs"] if job["id"].endswith(":odd"))
    assert odd["state"] in ("baseline", "release")


@pytest.mark.parametrize("iteration", [None, 0])
def test_iterations_that_take_no_time(held, make_peer, helpers, iteration) -> None:
    """A trainer whose stamps stand still: whatever comes of it, the daemon goes on."""
    peer = make_peer(held)
    peer.send(helpers.hello(job="frozen", stages=1, gpus=[free_gpu(held)]))
    assert isinstance(peer.hear(), Welcome)
    for number in range(1, 100):
        at = None if iteration is None else number // 2
        peer.send(msgpack.packb(["s", 2 * number - 1, 5, number, "forward", number % 2, 0, 0, at]))
        peer.send(msgpack.packb(["e", 2 * number, 5, number]))
    time.sleep(0.3)
    assert held.daemon.poll() is None, held.log.read_text()


@pytest.mark.system
def test_a_user_who_is_not_allowed(held, helpers) -> None:
    """By the kernel's word, whatever a message says: neither hooks nor control serve it."""
    payload = encode(helpers.hello(gpus=[free_gpu(held)])).hex()
    request = json.dumps({"command": "straggler_announce", "job": "tiny", "factor": 2})
    stranger = subprocess.run(
        [sys.executable, "-c", _STRANGER, "65534", str(held.folder), payload, request],
        capture_output=True,
        check=True,
        timeout=30,
        cwd="/",
    )
    from_hooks, from_control = json.loads(stranger.stdout)
    assert b"uid 65534 is not among [access] allow_users" in bytes.fromhex(from_hooks)
    assert held.refused("uid 65534")["code"] == "not_permitted"
    answer = json.loads(bytes.fromhex(from_control))
    assert answer["code"] == "not_permitted"
    assert "uid 65534 may not control" in answer["error"]
    assert held.announced() == []
