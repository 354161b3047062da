"""`perseusctl completion`: what a real shell makes of its script."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from perseusd.ctl.completion import script
from perseusd.ctl.main import main, parser


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By shell, a file with its script, in a folder with a file and a folder."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "a-file.toml").write_text("")
    (folder / "a-folder").mkdir()
    found = {"bash": folder / "bash", "zsh": folder / "_perseusctl", "fish": folder / "fish"}
    for shell, file in found.items():
        file.write_text(script(parser(), shell))
    return found


def completed_by_bash(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of these words."""
    asked = " ".join(f"'{word}'" for word in words)
    text = (
        f"source {script}; COMP_WORDS=({asked}); COMP_CWORD={len(words) - 1}; "
        f"_shtab_perseusctl; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "--norc", "-c", text],
        capture_output=True,
        text=True,
        check=True,
        cwd=script.parent,
    )
    return {line.strip() for line in done.stdout.splitlines() if line.strip()}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("perseusctl", "stra"), {"straggler"}),
        (("perseusctl", "straggler", ""), {"list", "announce", "end"}),
        (("perseusctl", "straggler", "announce", "--fa"), {"--factor"}),
        (("perseusctl", "config", "check", "--j"), {"--json"}),
        (("perseusctl", "completion", ""), {"bash", "zsh", "fish"}),
        (("perseusctl", "config", "check", "a-"), {"a-file.toml", "a-folder"}),
        (("perseusctl", "--runtime-dir", "a-"), {"a-folder"}),
    ],
)
def test_bash_completes(
    scripts: dict[str, Path], words: tuple[str, ...], offered: set[str]
) -> None:
    """Commands, their own commands, options, choices, and files where one is meant."""
    found = {word.rstrip("/") for word in completed_by_bash(scripts["bash"], *words)}
    assert found >= offered
    assert all(word.startswith(words[-1]) for word in found)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_it_is_printed_and_in_json_one_string(
    shell: str, scripts: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """For a shell to read, and for who installs it by program."""
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == scripts[shell].read_text()
    assert main(["completion", shell, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"schema_version": 1, "shell": shell, "script": scripts[shell].read_text()}


@pytest.mark.system
@pytest.mark.parametrize(
    ("asked", "offered"),
    [("stra", "straggler"), ("straggler ann", "announce"), ("plan --fr", "--frontier")],
)
def test_fish_completes(scripts: dict[str, Path], asked: str, offered: str) -> None:
    """A real fish offers what bash does."""
    fish = shutil.which("fish")
    assert fish is not None, "install Debian's fish package"
    text = f"source {scripts['fish']}; complete -C 'perseusctl {asked}'"
    done = subprocess.run(
        [fish, "--no-config", "-c", text], capture_output=True, text=True, check=True
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [offered]


@pytest.mark.system
def test_zsh_completes(scripts: dict[str, Path]) -> None:
    """A real zsh, as somebody would type: the script lies in a directory of its functions."""
    zsh = shutil.which("zsh")
    assert zsh is not None, "install Debian's zsh package"
    folder = scripts["zsh"].parent
    ours, theirs = pty.openpty()
    typist = subprocess.Popen(
        [zsh, "-f", "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={"PATH": os.environ["PATH"], "TERM": "dumb"},
    )
    os.close(theirs)
    try:
        begin = f"fpath=({folder} $fpath); autoload -Uz compinit; compinit -D -u; echo be''gun\n"
        os.write(ours, begin.encode())
        assert "begun" in read_until(ours, "begun")
        os.write(ours, b"echo perseusctl; perseusctl straggler ann\t")
        assert "announce" in read_until(ours, "announce")
    finally:
        typist.kill()
        typist.wait()
        os.close(ours)


def read_until(terminal: int, part: str) -> str:
    """What a terminal shows, until it shows this or 20 s have passed."""
    shown, deadline = "", time.monotonic() + 20
    while part not in shown and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")
    return shown
