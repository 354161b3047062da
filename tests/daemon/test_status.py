"""The status object's form: every field is in the documentation, and the other way round."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perseusd.config import Sources, load_config
from perseusd.daemon.ended import KEPT, EndedJobs
from perseusd.daemon.reload import Reloader
from perseusd.daemon.service import Service

DOCUMENT = Path(__file__).parents[2] / "docs" / "status.md"

SCHEMA_1 = {
    "id", "state", "ranks", "iteration", "iteration_time_s", "deadline_s", "critical_path",
    "stragglers", "saving", "saving_low", "saving_high", "slowdown", "slowdown_low",
    "slowdown_high", "energy_saved_j", "why",
}  # fmt: skip
"""What others rely on of a job as long as `schema_version` is 1."""


def documented(part: str) -> set[str]:
    """The names in the first column of the table of docs/status.md that stands below `part`."""
    _, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(f"f `{part}`:")
    table = re.search(r"\n\n(\|.*?)\n\n", rest, re.DOTALL)
    assert table is not None
    rows = table.group(1).splitlines()[2:]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}


@pytest.fixture
def rig(make_rig) -> Any:
    return make_rig()


@pytest.fixture
def service(rig) -> Iterator[Service]:
    config = load_config(None, {"runtime_dir": rig.folder, "simulate": 4, "observe": True}, {})
    made = Service(config, Reloader(config, Sources()))
    yield made
    made.shutdown()


@pytest.fixture
def status(service, rig, make_peer, helpers) -> dict:
    """Of a daemon that has heard of one job."""
    peer = make_peer(rig)
    peer.send(helpers.hello(gpus=[rig.node.gpus[0].info.uuid]))
    for _ in range(500):
        service._turn(service._wait())
        if service.controller.jobs:
            break
    return service.status.make()


def test_jobs_that_ended_are_remembered_until_they_come_back() -> None:
    """Newest first, each once and no more than KEPT; one that runs again has not ended."""
    ended = EndedJobs()
    for number in range(KEPT + 2):
        ended.add(f"me:{number}", number)
    ended.add("me:5", 50)
    told = ended.as_json({"me:9"})
    assert [job["id"] for job in told] == [f"me:{n}" for n in (5, 8, 7, 6, 4, 3, 2)]
    assert told[0]["iteration"] == 50
    assert set(told[0]) == documented("ended")
    assert all(job["ended_s_ago"] >= 0 for job in told)


def test_a_job_that_says_goodbye_is_told_as_ended(service, helpers) -> None:
    """The core says that its last process is gone, and the status when that was."""
    hello = helpers.hello(job="short", gpus=[next(iter(service.controller.gpus))])
    service.deeds.do(service.controller.hello("a", "me", hello))
    assert service.status.make()["ended"] == []
    service.deeds.do(service.controller.client_lost("a", "has said goodbye"))
    (told,) = service.status.make()["ended"]
    assert (told["id"], told["iteration"]) == ("me:short", -1)


@pytest.mark.parametrize("part", ["gpus", "jobs"])
def test_every_field_is_documented(status, part: str) -> None:
    """Neither a field that the page leaves out nor one that it promises in vain."""
    assert set(status[part][0]) == documented(part)


def test_every_count_is_documented(status) -> None:
    """What is counted, and each way in which a clock write can end."""
    assert set(status["counters"]) == documented("counters")
    _, _, rest = DOCUMENT.read_text(encoding="utf-8").partition("### How a clock write ends")
    told = re.findall(r"`(\w+)`", rest.partition("###")[0])
    assert sorted(status["counters"]["clock_writes"]) == sorted(told)


def test_what_is_not_known_is_null_and_all_of_it_is_json(status) -> None:
    """A job that has only said hello: every figure null, every list empty, nothing not JSON."""
    assert json.loads(json.dumps(status, allow_nan=False)) == status
    (job,) = status["jobs"]
    assert job["critical_path"] == job["slack"] == job["stragglers"] == []
    for name in ("saving", "slowdown", "predicted_saving", "no_prediction", "learning", "plan"):
        assert job[name] is None
    assert (job["energy_saved_j"], job["reference_iterations"]) == (0.0, 0)
    assert job["why_code"] == "ranks_missing"


def test_the_first_schema_stays(status) -> None:
    """Fields are added; those that were there from the beginning are never taken away."""
    assert status["schema_version"] == 1
    assert set(status["jobs"][0]) >= SCHEMA_1


def test_a_standing_lock_is_full_clock(rig) -> None:
    """Planning takes no higher clock for one that there is, and status tells of it."""
    flags = {"runtime_dir": rig.folder, "simulate": 4, "observe": True}
    config = load_config(None, {**flags, "standing_lock_mhz": {"*": 1305}}, {})
    made = Service(config, Reloader(config, Sources()))
    try:
        assert {gpu["standing_mhz"] for gpu in made.status.make()["gpus"]} == {1305}
        assert {facts.top_mhz for facts in made.controller.gpus.values()} == {1305}
    finally:
        made.shutdown()
