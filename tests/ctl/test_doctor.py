"""`perseusctl doctor`: each thing that can keep a job unseen or fast is named with its fix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from perseus_hooks.events import Hello

from perseusd.core.jobs.roster import Member, Roster
from perseusd.ctl.diagnosis import diagnose
from perseusd.ctl.environment import VARIABLES, check_environment
from perseusd.ctl.findings import Verdict
from perseusd.ctl.fixes import READ_THE_LOG, fix_for
from perseusd.ctl.main import main

Change = Callable[[dict[str, Any]], object]


def change(path: str, **values: object) -> Change:
    """A change of a Status object: `daemon`, `gpus` or `jobs` (their first)."""

    def apply(status: dict[str, Any]) -> None:
        target = status[path] if path == "daemon" else status[path][0]
        target.update(values)

    return apply


def both(*changes: Change) -> Change:
    return lambda status: [apply(status) for apply in changes]


def straggler(**values: object) -> dict[str, object]:
    found = {"replica": 0, "stage": 2, "rank": 2, "factor": 1.5, "since_iteration": 12}
    return found | {"until_iteration": None, "transient": False, "cause": "compute"} | values


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_nothing_is_wrong(stand_in, status, capsys) -> None:
    """A job in hold on an acting daemon: exit code 0 and every check in order."""
    stand_in.answers(status)
    assert main(["doctor", "--runtime-dir", str(stand_in.runtime_dir)]) == 0
    shown = capsys.readouterr().out
    subjects = ["environment", "runtime directory", "hooks socket", "daemon", "clock process"]
    subjects += ["GPUs", "job job-a"]
    places = [shown.index(f" {subject}: ") for subject in subjects]
    assert places == sorted(places)
    assert "Nothing is wrong." in shown


@pytest.mark.parametrize(
    ("changed", "text", "fix"),
    [
        (change("daemon", clock_process="dead"), "perseusd-clock is dead", "journalctl"),
        (change("daemon", clock_process="dead", driver="free"), "paused", "perseusctl resume"),
        (change("daemon", clock_process="dead", driver="opening"), "being resumed", "dmesg"),
        (
            change("daemon", missing_gpus=[{"index": 3, "why": "GPU is lost"}]),
            "GPU 3 could not be opened: GPU is lost",
            "dmesg",
        ),
        (
            change("daemon", gpu_use_unknown="no clock will be lowered: who uses a GPU cannot …"),
            "no clock will be lowered",
            "hostPID: true), see docs/security.md; where all on this node is one user's, [access] "
            'gpu_check = "off"',
        ),
        (lambda status: status.update(gpus=[]), "none is visible", "nvidia-smi"),
        (
            change("daemon", configuration={"problems": ["/x: not TOML"], "waiting": []}),
            "refused at the last reload: /x: not TOML",
            "the next start fails",
        ),
        (change("gpus", state="stuck"), "is stuck", "dmesg"),
        (change("gpus", state="failed", error="is lost"), "is failed: is lost", "dmesg"),
        (
            change("jobs", state="baseline", ranks=7, expected_ranks=8, missing_ranks=[3]),
            "7 of 8 ranks have said hello; missing: stage 3",
            "call the hooks",
        ),
        (change("jobs", state="baseline", ranks=7, expected_ranks=8), "7 of 8", "call the hooks"),
        (
            change("jobs", state="baseline", why="rank 2 runs on CUDA but sends host times, …"),
            "host times",
            "adapter",
        ),
        (
            change("jobs", state="release", why="rank 1: forward 2 came at position 5 of …"),
            "came at position 5",
            "same order",
        ),
        (
            change("jobs", state="baseline", why="rank 3: its order does not recur: iteration …"),
            "rank 3: its order does not recur",
            "same order",
        ),
        (
            both(
                change("daemon", mode="observe"),
                change("jobs", state="baseline", why="rank 3: its order cannot be followed: …"),
            ),
            "rank 3: its order cannot be followed",
            "count by one",
        ),
        (
            change(
                "jobs",
                state="learn",
                why="no plan could be made: learning ended after 2 …",
                why_code="nothing_tried",
            ),
            "learning ended after 2",
            "max_iterations",
        ),
        (change("jobs", state="release", why="rank 1 has ended"), "has ended", "start that rank"),
        (change("jobs", state="release", why="rank 0 fell silent"), "silent", "still trains"),
        (change("jobs", state="release", why="something else"), "something else", "journalctl"),
        (
            change("jobs", stragglers=[straggler(cause="thermal")]),
            "replica 0 stage 2: 1.50 times its usual time, thermal, since iteration 12",
            "nvidia-smi -q -d TEMPERATURE",
        ),
        (change("jobs", stragglers=[straggler(cause="power_cap")]), "power cap", "power limit"),
        (change("jobs", stragglers=[straggler(cause=None)]), "cause not known", "ECC"),
        (
            change("gpus", follows_request="above"),
            "does not follow its clock: it runs above what is asked (last read: 1095 MHz, asked",
            "something else sets its clocks",
        ),
        (
            change("gpus", follows_request="below", reasons=["hw_thermal"]),
            "runs below even the clock that is asked",
            "cooling",
        ),
        (
            change("jobs", state="baseline", why="words of tomorrow", why_code="gpu_unknown"),
            "words of tomorrow",
            "PERSEUS_GPUS",
        ),
        (
            change("daemon", refused=[{"code": "held", "reason": "held by x", "count": 3}]),
            "refused 3 times: held by x",
            "in the process that sent it",
        ),
    ],
)
def test_a_problem_is_named_with_its_fix(
    stand_in, status, capsys, changed: Change, text: str, fix: str
) -> None:
    """Each obstacle is a problem with its own fix, and the exit code is 1."""
    changed(status)
    stand_in.answers(status)
    assert main(["doctor", "--json", "--runtime-dir", str(stand_in.runtime_dir)]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema_version"] == 1
    assert answer["ok"] is False
    problems = [found for found in answer["findings"] if found["verdict"] == "problem"]
    assert any(text in found["text"] and fix in found["fix"] for found in problems)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (change("daemon", mode="observe", clock_process="dead"), "observe-only"),
        (change("daemon", emulated=True), "emulated"),
        (change("daemon", configuration=None), "jobs are not shown to you"),
        (change("daemon", released={"G": "G was released by an operator"}), "G was released"),
        (change("jobs", state="baseline", why="measuring the baseline: 2 of 5 iterations"), "2 of"),
        (
            change(
                "jobs", state="baseline", why="the order of its computations is not understood yet"
            ),
            "not understood yet",
        ),
        (
            change("jobs", state="baseline", why="its iterations are too short: within …"),
            "iterations are too short",
        ),
        (
            change(
                "jobs",
                state="learn",
                why="no plan could be made: a job of one stage has "
                "nothing to wait for: it is measured, and stays at full clock",
            ),
            "has nothing to wait for",
        ),
        (
            change("jobs", state="learn", why="no lower clock …", why_code="little_slack"),
            "no lower clock …",
        ),
        (change("gpus", mig=True), "MIG is on"),
        (change("gpus", reasons=["sw_thermal"]), "is slowed by sw_thermal"),
        (change("jobs", stragglers=[straggler(transient=True)]), "transient"),
        (change("jobs", stragglers=[straggler(cause="announced", replica=None)]), "announced"),
        (
            change(
                "jobs",
                state="learn",
                iteration=300,
                states=[{"state": "learn", "since_iteration": 6}],
                learning={
                    "uncertain": [
                        {"stage": 1, "instruction": "forward", "time_error": 0.1, "energy_error": 0}
                    ]
                },
            ),
            "learning for 294 iterations; least known: forward of stage 1 (time ± 10.0 %",
        ),
        (
            change("jobs", learning={"remembered": "discarded", "remembered_why": "twice as slow"}),
            "were wrong and are discarded: twice as slow",
        ),
        (
            change("jobs", learning={"remembered": "unlike", "remembered_why": "another batch"}),
            "not the job whose curves are remembered: another batch",
        ),
        (lambda status: status.update(jobs=[]), "no training process has said hello"),
        (
            lambda status: status.update(
                jobs=[], ended=[{"id": "me:a", "iteration": 24, "ended_s_ago": 125.0}]
            ),
            "No job is running. Last: me:a, iteration 24, ended 2 min 5 s ago",
        ),
        (change("jobs", time_source="host"), "its times are the host's"),
        (change("jobs", expected_ranks=None), "is not known"),
        (
            change("daemon", refused=[{"reason": "x", "count": 1, "last_s_ago": 7200}]),
            "last 2 h 0 min ago",
        ),
        (
            change("daemon", refused=[{"reason": "x", "count": 1, "last_s_ago": 61}]),
            "last 1 min 1 s ago",
        ),
        (
            change(
                "daemon",
                refused=[{"reason": "x", "count": 1, "last_s_ago": 5, "process_runs": False}],
            ),
            "refused once: x (that process has ended)",
        ),
        (
            change("daemon", configuration={"problems": [], "waiting": ["[daemon] observe"]}),
            "[daemon] observe",
        ),
    ],
)
def test_what_is_good_to_know_is_no_problem(status, changed: Change, text: str) -> None:
    """Patience, modes and history are notes: the exit code stays 0."""
    changed(status)
    findings = list(diagnose(status))
    assert not [found for found in findings if found.verdict is Verdict.PROBLEM]
    assert any(text in found.text for found in findings if found.verdict is Verdict.NOTE)


def test_refusals_of_a_process_that_has_ended_are_forgotten_after_a_minute(status) -> None:
    """There is nobody left to correct; one that runs on without being served is told still."""
    ended = {"reason": "x", "count": 1, "last_s_ago": 61, "process_runs": False}
    status["daemon"]["refused"] = [ended]
    assert not any(found.subject == "clients" for found in diagnose(status))
    status["daemon"]["refused"] = [ended | {"process_runs": True}]
    assert any(found.subject == "clients" for found in diagnose(status))


OBSERVED = {"state": "baseline", "why": "observe-only mode: …", "why_code": "observing"}


@pytest.mark.parametrize(
    ("known", "text", "fix"),
    [
        (
            {"predicted_saving": {"saving": 0.14, "source": "some paper"}},
            "is predicted to save 14.0 % (a prediction, from a prior: some paper)",
            "let perseusd act",
        ),
        ({"no_prediction": "nothing is published"}, "nothing is published", "only acting tells"),
        ({}, "is still being measured", ""),
        (
            {"why": "rank 1 did not say which GPU it uses", "why_code": "gpu_unknown"},
            "did not say which GPU",
            "PERSEUS_GPUS",
        ),
    ],
)
def test_observing_has_a_next_step(status, known: dict[str, Any], text: str, fix: str) -> None:
    """What acting would bring, or what would keep it from acting; none of it is a problem."""
    status["daemon"] |= {"mode": "observe", "clock_process": "dead"}
    status["jobs"][0] |= OBSERVED | known
    findings = list(diagnose(status))
    assert not [found for found in findings if found.verdict is Verdict.PROBLEM]
    assert any(text in found.text and fix in (found.fix or "") for found in findings)


def test_replicas_of_a_job_tell_of_a_straggler_once(status) -> None:
    """Each replica's status shows all stragglers of its job."""
    first = status["jobs"][0] | {"id": "me:a", "stragglers": [straggler()]}
    status["jobs"] = [first, first | {"id": "me:a/1"}, first | {"id": "me:b"}]
    told = [found.subject for found in diagnose(status) if "straggler" in found.text]
    assert told == ["job me:a", "job me:b"]


def test_a_stage_that_was_not_said_is_no_missing_rank(status) -> None:
    """`stages` without `stage`: not all stages are missing, one rank did not say its own."""
    why = "rank 0 did not say its stage: configure(stage=…) or PERSEUS_STAGE"
    told = {"state": "baseline", "why": why, "missing_ranks": list(range(8))}
    status["jobs"][0] |= told | {"ranks": 1, "expected_ranks": 8}
    (found,) = [f for f in diagnose(status) if f.verdict is Verdict.PROBLEM]
    assert why in found.text
    assert "configure(stage=…" in (found.fix or "")
    assert not any("missing: stages" in f.text for f in diagnose(status))


def waiting(status: dict[str, Any], name: str) -> dict[str, Any]:
    why = "waiting for the ranks of stage 2: no process has said hello for them"
    some = {"id": name, "state": "baseline", "why": why, "missing_ranks": [2]}
    return status["jobs"][0] | some | {"ranks": 2, "expected_ranks": 3}


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("baseline", "waiting for the ranks of stage 2: no process has said hello for them"),
        ("baseline", "waiting for 1 of 3 ranks"),
        ("release", "rank 2 has ended"),
    ],
)
def test_a_missing_rank_is_one_problem(status, state: str, why: str) -> None:
    """That the job waits for it is a consequence; another reason counts by itself."""
    status["jobs"] = [waiting(status, "root:a") | {"state": state, "why": why}]
    found = [f for f in diagnose(status) if f.verdict is Verdict.PROBLEM]
    assert [f.text.startswith("2 of 3 ranks") for f in found] == [True]
    status["jobs"][0]["why"] = "rank 1: forward 2 came at position 5"
    assert len([f for f in diagnose(status) if f.verdict is Verdict.PROBLEM]) == 2


@pytest.mark.parametrize(
    ("names", "hinted"),
    [
        (["root:pid-17", "root:pid-18", "root:pid-19"], True),
        (["root:pid-17", "me:pid-18"], False),
        (["root:pid-17"], False),
        (["root:a", "root:b"], False),
    ],
)
def test_a_job_torn_into_processes_is_told_how_to_join(
    status, names: list[str], hinted: bool
) -> None:
    """Several incomplete jobs of one user, named by process id: no launcher was recognised."""
    status["jobs"] = [waiting(status, name) for name in names]
    findings = [f for f in diagnose(status) if f.subject.startswith("job")]
    problems = [f for f in findings if f.verdict is Verdict.PROBLEM]
    hint = problems[0].fix or ""
    assert ("PERSEUS_JOB to one name" in hint and "PERSEUS_RANK for each" in hint) == hinted
    assert len(problems) == (1 if hinted else len(names))
    assert findings[0] is problems[0]  # what the rest follows from comes first
    fixes = [found.fix for found in findings if found.fix]
    assert len(fixes) == len(problems)  # nothing is told twice


def test_no_daemon(tmp_path: Path, capsys) -> None:
    """An existing directory without sockets: the sockets are the problem, and checks stop there."""
    assert main(["doctor", "--runtime-dir", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "problem  hooks socket" in shown
    assert "problem  daemon" in shown
    assert "clock process" not in shown
    assert "systemctl status perseusd" in shown


def test_no_runtime_directory(tmp_path: Path, capsys) -> None:
    """A directory that does not exist is the first problem."""
    assert main(["doctor", "--runtime-dir", str(tmp_path / "absent")]) == 1
    assert "problem  runtime directory" in capsys.readouterr().out


def test_a_foreign_answer(stand_in, capsys) -> None:
    """A daemon that answers nonsense is a problem, not a crash of the doctor."""
    stand_in.answer = lambda request: [b"nonsense"]
    assert main(["doctor", "--runtime-dir", str(stand_in.runtime_dir)]) == 1
    assert "is not JSON" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environ", "verdict", "text"),
    [
        ({"PERSEUS_ENABLED": "0"}, Verdict.PROBLEM, "switches the hooks off"),
        ({"PERSEUS_STAGE": "first"}, Verdict.PROBLEM, "PERSEUS_STAGE"),
        ({"PERSEUS_STAEG": "1"}, Verdict.NOTE, "PERSEUS_STAEG is read by nobody"),
        ({"PERSEUS_STAGE": "1"}, Verdict.OK, "PERSEUS_STAGE=1"),
    ],
)
def test_the_environment(environ: Mapping[str, str], verdict: Verdict, text: str) -> None:
    """Variables are read as the hooks read them; a wrong or misspelt one is found."""
    findings = list(check_environment(environ))
    assert any(found.verdict is verdict and text in found.text for found in findings)


def hello(stage: int | None, stages: int | None, **values: Any) -> Hello:
    known = {"rank": stage or 0, "world_size": None, "local_rank": None, "replica": None}
    known |= {"replicas": None, "schedule": None, "gpus": (), "time_source": "host"}
    known |= {"uses_cuda": False, "slowdown_budget": None, "hostname": "h", "job": "j"}
    return Hello(stage=stage, stages=stages, **{**known, **values})


@pytest.mark.parametrize(
    ("hellos", "gpus"),
    [
        ([hello(None, None)], ("GPU-0",)),
        ([hello(0, 2)], ("GPU-0",)),
        ([hello(0, 1, world_size=2)], ("GPU-0",)),
        ([hello(0, 1)], ()),
        ([hello(0, 1, uses_cuda=True)], ("GPU-0",)),
    ],
)
def test_every_obstacle_of_the_core_has_its_own_fix(hellos: list[Hello], gpus: Any) -> None:
    """The core's words for why a job is not planned are those that the doctor knows a fix for."""
    members = {str(n): Member(str(n), said, gpus) for n, said in enumerate(hellos)}
    why = Roster(members).obstacle()
    assert why
    assert fix_for(why) != READ_THE_LOG
