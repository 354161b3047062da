"""`perseusd`: arguments become a Config, errors become exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from perseusd import __version__, cli
from perseusd.config import Config
from perseusd.errors import (
    ConfigurationError,
    DaemonUnreachableError,
    GpuError,
    NotPermittedError,
    PerseusError,
    ProfileError,
    UsageError,
)
from perseusd.exits import exit_code


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that the service was started with; the service itself is a stand-in."""
    configs: list[Config] = []

    def run(config: Config, _sources: object, _origins: object) -> int:
        configs.append(config)
        return 0

    service = types.ModuleType("perseusd.daemon.service")
    service.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "perseusd.daemon.service", service)
    monkeypatch.delenv("PERSEUS_RUNTIME_DIR", raising=False)
    return configs


def test_run_hands_one_config_to_the_service(started: list[Config], tmp_path: Path) -> None:
    """File and flags arrive in one Config; a flag that was not given overrides nothing."""
    file = tmp_path / "perseusd.toml"
    file.write_text("[daemon]\nobserve = true\nlog_level = 'warning'\n")
    words = ["run", "--config", str(file), "--runtime-dir", str(tmp_path), "--simulate", "8"]
    assert cli.main(words) == 0
    assert started[0].observe is True
    assert started[0].log_level == "warning"
    assert started[0].simulate == 8
    assert started[0].state_dir == tmp_path / "state"


def test_the_observe_flag_switches_it_on(started: list[Config]) -> None:
    """--observe and --log-level reach the service without a file."""
    assert cli.main(["run", "--observe", "--log-level", "error"]) == 0
    assert (started[0].observe, started[0].log_level) == (True, "error")


def test_a_wrong_configuration_exits_78(
    started: list[Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is started on a configuration that is wrong."""
    file = tmp_path / "perseusd.toml"
    file.write_text("[daemon]\nobserv = true\n")
    assert cli.main(["run", "--config", str(file)]) == 78
    assert cli.main(["run", "--simulate", "0"]) == 78
    assert "did you mean observe?" in capsys.readouterr().err
    assert started == []


@pytest.mark.parametrize("words", [[], ["rnu"], ["run", "--simulate", "x"], ["run", "--nope"]])
def test_wrong_usage_exits_2(words: list[str]) -> None:
    """A command line that is none ends in the usage text and exit code 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["run", "--obs"], "--observe"), (["demo", "--work", "gpt3-175b"], "--workload")],
)
def test_options_are_written_out(
    words: list[str], meant: str, started: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    """The beginning of one is refused with its whole name, and nothing is started."""
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err
    assert started == []


@pytest.mark.parametrize(
    "words", [["demo", "--json", "--nope"], ["demo", "--seed", "x", "--json"], ["rnu", "--json"]]
)
def test_wrong_usage_with_json_is_one_object(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that reads standard output finds one object, and a person the usage text."""
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert (answer["schema_version"], answer["exit_code"]) == (1, 2)
    assert answer["error"] in captured.err
    assert "usage: perseusd" in captured.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PerseusError(), 1),
        (GpuError(), 1),
        (UsageError(), 2),
        (ProfileError(), 2),
        (DaemonUnreachableError(), 69),
        (NotPermittedError(), 77),
        (ConfigurationError(), 78),
    ],
)
def test_exit_codes(error: PerseusError, code: int) -> None:
    """Each error ends in the exit code of the contract; a subclass in that of its class."""
    assert exit_code(error) == code


def test_an_interrupt_is_no_traceback(
    started: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends with 130, as the shell expects."""

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["perseusd.daemon.service"], "run", interrupted)
    assert cli.main(["run"]) == 130


def test_python_m_perseusd() -> None:
    """`python -m perseusd --version` works, and imports nothing heavy."""
    code = (
        "import sys, runpy\n"
        "sys.argv = ['perseusd', '--version']\n"
        "try: runpy.run_module('perseusd', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'highspy', 'zmq', 'rich', 'pynvml'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"perseusd {__version__}", "heavy: []"]
