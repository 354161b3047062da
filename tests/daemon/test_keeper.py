"""The thread that keeps learned curves: in order, never waited for, also on a disk that hangs."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from perseusd.core.actions import Discard, Recall, Remember
from perseusd.daemon import keeper as keeper_module
from perseusd.daemon.keeper import MOST_WAITING, CurveKeeper
from perseusd.daemon.memory import CurveFiles

KEY, OTHER = "a" * 32, "b" * 32


class SlowFiles(CurveFiles):
    """A disk that answers when it is let."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.answers = threading.Event()

    def load(self, signature: str) -> dict[str, Any] | None:
        self.answers.wait()
        return super().load(signature)


@pytest.fixture
def slow(tmp_path: Path) -> Any:
    files = SlowFiles(tmp_path)
    yield files
    files.answers.set()


def recalled(keeper: CurveKeeper, helpers: Any) -> tuple[str, str, Mapping[str, Any] | None]:
    helpers.until(lambda: keeper.recalled, 10)
    return keeper.recalled.popleft()


def listed(keeper: CurveKeeper, helpers: Any) -> dict[str, Any]:
    """As of a look that began now."""
    answer = keeper.commands()["memory_list"]
    look = answer({})["look"]
    helpers.until(lambda: answer({})["looks"] >= look, 10)
    return answer({})


def test_in_the_order_of_asking(tmp_path: Path, helpers: Any) -> None:
    """Recall, remember, recall, discard, recall: each sees what was done before it."""
    keeper = CurveKeeper(CurveFiles(tmp_path))
    keeper.start()
    keeper.act(Recall("job", KEY))
    keeper.act(Remember(KEY, {"x": 1}))
    keeper.act(Recall("job", KEY))
    keeper.act(Discard(KEY))
    keeper.act(Recall("job/1", KEY))
    found = [recalled(keeper, helpers) for _ in range(3)]
    assert found == [("job", KEY, None), ("job", KEY, {"x": 1}), ("job/1", KEY, None)]
    keeper.stop()


def test_the_end_waits_for_what_is_to_be_written(tmp_path: Path) -> None:
    """What was asked for before the stop is on disk after it."""
    keeper = CurveKeeper(CurveFiles(tmp_path))
    keeper.start()
    for i in range(20):
        keeper.act(Remember(KEY, {"x": i}))
    keeper.stop()
    assert CurveFiles(tmp_path).load(KEY) == {"x": 19}


def test_without_files_nothing_is_kept(tmp_path: Path) -> None:
    """remember = false: a recall is answered at once with nothing, and operators are told."""
    keeper = CurveKeeper(None)
    keeper.start()
    keeper.act(Remember(KEY, {"x": 1}))
    keeper.act(Discard(KEY))
    keeper.act(Recall("job", KEY))
    assert list(keeper.recalled) == [("job", KEY, None)]
    answer = keeper.commands()["memory_list"]({})
    assert (answer["remember"], answer["curves"], answer["look"]) == (False, [], 0)
    keeper.stop()


def test_a_disk_that_hangs_holds_up_nobody(
    slow: SlowFiles, helpers: Any, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    """Asking never waits; what is too much is dropped and told once, a recall among it is answered
    with nothing; the daemon's end does not wait either; and when the disk is back, so are we."""
    keeper = CurveKeeper(slow)
    keeper.start()
    for i in range(2 * MOST_WAITING):
        keeper.act(Recall(f"job {i}", KEY))
    dropped = len(keeper.recalled)
    assert MOST_WAITING - 2 <= dropped <= MOST_WAITING
    assert {learned for _, _, learned in keeper.recalled} == {None}
    assert caplog.text.count("does not answer") == 1
    monkeypatch.setattr(keeper_module, "STOP_S", 0.01)
    keeper.stop()
    assert keeper._thread.is_alive()
    slow.answers.set()
    helpers.until(lambda: len(keeper.recalled) == 2 * MOST_WAITING, 10)
    keeper.act(Remember(KEY, {"x": 1}))
    keeper.act(Recall("again", KEY))
    helpers.until(lambda: ("again", KEY, {"x": 1}) in keeper.recalled, 10)
    keeper.stop()


def test_operators_see_what_is_there_now(tmp_path: Path, helpers: Any) -> None:
    """A list as of a look that begins after the question, also of what others put there."""
    files = CurveFiles(tmp_path)
    keeper = CurveKeeper(files)
    keeper.start()
    assert listed(keeper, helpers)["curves"] == []
    keeper.act(Remember(KEY, {"stages": 8, "gpus": ["A100"], "schedule": "1f1b"}))
    (kept,) = listed(keeper, helpers)["curves"]
    assert (kept["signature"], kept["stages"], kept["gpus"]) == (KEY, 8, ["A100"])
    assert kept["size_bytes"] == (tmp_path / f"{KEY}.curves").stat().st_size
    assert 0 <= kept["used_s_ago"] < 60
    os.rename(tmp_path / f"{KEY}.curves", tmp_path / f"{OTHER}.curves")
    assert [c["signature"] for c in listed(keeper, helpers)["curves"]] == [OTHER]
    keeper.stop()


def test_operators_forget(tmp_path: Path, helpers: Any) -> None:
    """One signature, and no other; what is no signature is refused."""
    keeper = CurveKeeper(CurveFiles(tmp_path))
    keeper.start()
    keeper.act(Remember(KEY, {}))
    keeper.act(Remember(OTHER, {}))
    forget = keeper.commands()["memory_forget"]
    for wrong in ("../x", "", None, 7, [KEY]):
        answer = forget({"signature": wrong})
        assert (answer["ok"], answer["code"]) == (False, "bad_request")
    assert forget({"signature": KEY})["ok"]
    assert [c["signature"] for c in listed(keeper, helpers)["curves"]] == [OTHER]
    keeper.stop()


def test_an_error_of_ours_ends_nothing(
    tmp_path: Path, helpers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be written as JSON is logged with its traceback, and the next request is done."""
    keeper = CurveKeeper(CurveFiles(tmp_path))
    keeper.start()
    keeper.act(Remember(KEY, {"x": object()}))
    keeper.act(Remember(KEY, {"x": float("nan")}))
    keeper.act(Recall("job", "no signature"))
    assert recalled(keeper, helpers) == ("job", "no signature", None)
    assert caplog.text.count("error of ours") == 3
    keeper.stop()


def test_troubles_are_shown(tmp_path: Path, helpers: Any) -> None:
    """An operator who lists is told that nothing can be written."""
    (tmp_path / "curves").write_text("")
    keeper = CurveKeeper(CurveFiles(tmp_path / "curves"))
    keeper.start()
    keeper.act(Remember(KEY, {}))
    assert any("cannot write" in trouble for trouble in listed(keeper, helpers)["troubles"])
    keeper.stop()
