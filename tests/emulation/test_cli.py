from __future__ import annotations

import argparse
import io
import json
import re
from dataclasses import replace

import pytest

from perseusd.emulation import cli
from perseusd.emulation.cli import add_demo_arguments, demo_options, main_demo, parse_straggler
from perseusd.emulation.coordinator import Straggler
from perseusd.emulation.picture import percent_longer
from perseusd.emulation.progress import Lines, Panels
from perseusd.emulation.report import DemoReport, Phase, Setting, report
from perseusd.errors import UsageError


def given(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_demo_arguments(parser)
    return parser.parse_args(words)


def test_straggler_as_the_contract_writes_it() -> None:
    """END is exclusive; unsaid it lies fifteen iterations after START."""
    assert parse_straggler("1.2@20") == Straggler(1.2, 20, 35)
    assert parse_straggler("1.5@10-40") == Straggler(1.5, 10, 40)
    assert not parse_straggler("1.5@10-40").active(40)


@pytest.mark.parametrize("text", ["1.2", "1.2@", "@20", "1.2@20-", "1.2@x", "0.9@20", "1.2@20-20"])
def test_a_wrong_straggler_is_named(text: str) -> None:
    """The error repeats what was given and shows what would do."""
    with pytest.raises(UsageError, match=re.escape(text)):
        parse_straggler(text)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--microbatches", "0"], "--microbatches 0"),
        (["--noise", "-1"], "--noise -1"),
        (["--noise", "3"], "--noise 3"),
        (["--seconds", "0"], "--seconds 0"),
        (["--seconds", "nan"], "--seconds nan"),
        (["--profile", "x.csv"], "--blocking-power"),
        (["--blocking-power", "80"], "--profile"),
        (["--profile", "x.csv", "--blocking-power", "80", "--workload", "t5-3b"], "--workload"),
        (["--workload", "gpt-4"], "'gpt-4'"),
    ],
)
def test_wrong_arguments_are_named(words: list[str], named: str) -> None:
    """A usage error that names the argument, before anything is started."""
    with pytest.raises(UsageError, match=named):
        demo_options(given(*words))


def test_the_default_is_the_issue_s_job() -> None:
    """GPT-3 175B on A100 SXM, 12 microbatches, 1 % noise, a picture; with --json no picture."""
    options = demo_options(given())
    assert (options.workload.name, options.workload.gpu) == ("gpt3-175b", "a100-sxm")
    assert (options.microbatches, options.noise) == (12, 0.01)
    assert options.picture is not None
    assert demo_options(given("--json")).picture is None


def test_list_names_the_workloads(capsys: pytest.CaptureFixture[str]) -> None:
    """Every workload with its GPU, and what is borrowed is said to be."""
    assert main_demo(given("--list")) == 0
    text = capsys.readouterr().out
    assert "gpt3-175b" in text
    assert "borrowed" in text
    assert main_demo(given("--list", "--json")) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["schema_version"] == 1
    assert len(listed["workloads"]) == 12


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("term", "kind"), [("dumb", Lines), ("xterm", Panels)])
def test_a_dumb_terminal_gets_lines(
    monkeypatch: pytest.MonkeyPatch, term: str, kind: type[object]
) -> None:
    """Where nothing can be redrawn, a panel would never be seen."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", term)
    assert isinstance(cli._progress(demo_options(given()), Terminal()), kind)


def never_held() -> DemoReport:
    return report(Setting("small", "a100-sxm", 3, 4, 80.0), [], (), None)


def test_json_without_a_saving_says_why_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 has its reason, and standard output is still one object."""
    monkeypatch.setattr(cli, "run_demo", lambda options, progress: never_held())
    assert main_demo(given("--json")) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["saving"] is None
    assert "never held" in captured.err
    assert "--seconds" in captured.err


def test_rows_with_a_straggler_are_labelled() -> None:
    """Nobody takes a straggler's row for the saving's; and all rows stay aligned."""
    phases = (Phase("hold", 9, 2.0, 900.0), Phase("hold", 4, 2.5, 700.0, straggler=True))
    lines = list(cli._summary(replace(never_held(), phases=phases), demo_options(given("--json"))))
    assert [line for line in lines if line.startswith("hold (straggler)")]
    assert len({len(line) for line in lines if line.startswith("hold")}) == 1
    assert any("A straggler was announced" in line for line in lines)


def test_a_job_from_a_profile_is_named_after_its_file() -> None:
    """The emulated GPU lends its clocks only; the file is what was measured."""
    named = replace(never_held(), profile="h100.csv").title
    assert named.startswith("h100.csv (measured profile) on 3 emulated GPUs")
    options = demo_options(given())
    assert options.profile is None
    assert never_held().title.startswith("small on 3 emulated a100-sxm GPUs")


def test_help_tells_the_profile_s_format() -> None:
    """Columns, units, and that the blocking power is required with it."""
    parser = argparse.ArgumentParser()
    add_demo_arguments(parser)
    words = " ".join(parser.format_help().split())
    assert (
        "stage,instruction,frequency,time,energy (stage from 0, forward|backward, MHz, s, J)"
        in (words)
    )
    assert "required with --profile" in words


def test_no_minus_zero() -> None:
    """What rounds to nothing has no sign."""
    assert cli._percent(-0.0001) == "0.0 %"
    assert percent_longer(-0.00001) == "0.00% longer"


def test_did_you_mean_only_where_it_is_alike() -> None:
    """An H100 is no slip of the pen for an A100."""
    with pytest.raises(UsageError) as caught:
        demo_options(given("--gpu", "h100"))
    assert "did you mean" not in str(caught.value)
    with pytest.raises(UsageError, match="did you mean 'a100-sxm'"):
        demo_options(given("--gpu", "a100sxm"))
