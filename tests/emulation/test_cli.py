from __future__ import annotations

import argparse
import json
import re

import pytest

from perseusd.emulation.cli import add_demo_arguments, demo_options, main_demo, parse_straggler
from perseusd.emulation.coordinator import Straggler
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
