"""The configuration: where values come from, what is refused, and how the refusal reads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.config import Config, load_config
from perseusd.errors import ConfigurationError


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "perseusd.toml"
    file.write_text(text, encoding="utf-8")
    return file


def loaded(tmp_path: Path, text: str) -> Config:
    return load_config(written(tmp_path, text), {}, {})


def refusal(
    tmp_path: Path,
    text: str,
    overrides: Mapping[str, object] | None = None,
) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_config(written(tmp_path, text), overrides or {}, {})
    return str(caught.value)


def test_defaults() -> None:
    """Without file, flag or variable, every option has the documented default."""
    config = load_config(None, {}, {})
    assert config.runtime_dir == Path("/run/perseusd")
    assert config.state_dir == Path("/var/lib/perseusd")
    assert config.observe is False
    assert config.slowdown_budget == 0.005
    assert config.max_node_write_share == 0.2
    assert config.clock_socket is None
    assert config.sampler_interval_s == 0.02
    assert config.allow_users is None
    assert config.admin_group == "perseusd"
    assert config.simulate is None


def test_the_readme_shows_every_option_with_its_default(tmp_path: Path) -> None:
    """The README's configuration is valid, complete, and the defaults."""
    readme = Path(__file__).parents[1] / "README.md"
    block = readme.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    assert loaded(tmp_path, block) == load_config(None, {}, {})
    named = {line.lstrip("# ").split(" = ")[0] for line in block.splitlines() if " = " in line}
    options = {field.metadata["key"] or field.name for field in fields(Config)}
    assert named == options - {"simulate"}


def test_sockets_and_files_stand_under_their_directories() -> None:
    """Moving the runtime directory by flag moves all sockets and all state with it."""
    config = load_config(None, {"runtime_dir": Path("/tmp/x")}, {})  # noqa: S108  never created
    runtime_dir = Path("/tmp/x")  # noqa: S108
    assert config.hooks_socket == runtime_dir / "hooks.sock"
    assert config.status_socket == runtime_dir / "status.sock"
    assert config.control_socket == runtime_dir / "control.sock"
    assert config.lock_file == runtime_dir / "perseusd.lock"
    assert config.simulated_file == runtime_dir / "simulated-gpus"
    assert config.state_dir == runtime_dir / "state"
    assert config.clock_state_dir == runtime_dir / "state" / "clock"
    assert config.curves_dir == runtime_dir / "state" / "curves"


def test_every_option_of_the_file_arrives(tmp_path: Path) -> None:
    """Each section and key of the file reaches its field."""
    config = loaded(
        tmp_path,
        """
        [daemon]
        runtime_dir = "/a"
        state_dir = "/b"
        observe = true
        log_level = "debug"
        [limits]
        slowdown_budget = 0.02
        learning_slowdown = 0
        min_clock_fraction = 0.6
        max_writes_per_s = 5
        max_node_write_share = 0.1
        silence_s = 7
        silence_iterations = 3
        events_per_s = 100
        max_clients = 8
        [learning]
        baseline_iterations = 6
        max_iterations = 20
        remember = false
        [clock]
        socket = "/run/clock.sock"
        heartbeat_s = 0.1
        [sampler]
        interval_s = 0.05
        [access]
        allow_users = ["root", 1000]
        admin_group = "wheel"
        """,
    )
    assert config == Config(
        runtime_dir=Path("/a"),
        state_dir=Path("/b"),
        observe=True,
        log_level="debug",
        slowdown_budget=0.02,
        learning_slowdown=0.0,
        min_clock_fraction=0.6,
        max_writes_per_s=5.0,
        max_node_write_share=0.1,
        silence_s=7.0,
        silence_iterations=3,
        events_per_s=100,
        max_clients=8,
        baseline_iterations=6,
        max_iterations=20,
        remember=False,
        clock_socket=Path("/run/clock.sock"),
        heartbeat_s=0.1,
        sampler_interval_s=0.05,
        allow_users=frozenset({0, 1000}),
        admin_group="wheel",
    )


def test_a_flag_comes_before_the_environment_before_the_file(tmp_path: Path) -> None:
    """Flag, environment, file, default: the first that gives a value wins."""
    file = written(tmp_path, '[daemon]\nruntime_dir = "/file"\n')
    environ = {"PERSEUS_RUNTIME_DIR": "/environment"}
    assert load_config(file, {"runtime_dir": "/flag"}, environ).runtime_dir == Path("/flag")
    assert load_config(file, {"runtime_dir": None}, environ).runtime_dir == Path("/environment")
    assert load_config(file, {}, {"PERSEUS_RUNTIME_DIR": ""}).runtime_dir == Path("/file")


def test_a_state_directory_that_was_named_stays(tmp_path: Path) -> None:
    """An explicit state directory is not moved by a runtime directory that only implies one."""
    file = written(tmp_path, '[daemon]\nstate_dir = "/kept"\n')
    assert load_config(file, {"runtime_dir": "/flag"}, {}).state_dir == Path("/kept")
    assert loaded(tmp_path, '[daemon]\nruntime_dir = "/r"\n').state_dir == Path("/var/lib/perseusd")


def test_relative_directories_become_absolute(tmp_path: Path) -> None:
    """A daemon that changes its directory later still finds its own."""
    relative = os.path.relpath(tmp_path)
    assert load_config(None, {"runtime_dir": Path(relative)}, {}).runtime_dir == tmp_path


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[daemon]\nobserv = true", ["[daemon] observ = true", "unknown key", "observe?"]),
        ("[limit]\nsilence_s = 5", ["[limit]", "unknown section", "limits?"]),
        ("[limits]\nobserve = true", ["[limits] observe = true", "belongs in [daemon]"]),
        ("silence_s = 5", ["silence_s = 5", "move it below [limits]"]),
        ("[daemon]\nsimulate = 8", ["simulate = 8", "flag only", "--simulate"]),
        ("[clock]\nzzz = 1", ["zzz = 1", "known here: heartbeat_s, socket"]),
        ("limits = 3", ["limits = 3", "is a section", "[limits]"]),
        ("[daemon]\nobserve = 1", ["[daemon] observe = 1", "true or false"]),
        ("[limits]\nsilence_s = 'x'", ['silence_s = "x"', "number from 0.1 to 3600"]),
        ("[limits]\nsilence_s = true", ["silence_s = true", "number"]),
        ("[limits]\nslowdown_budget = 5", ["slowdown_budget = 5", "between 0 and 0.5"]),
        ("[limits]\nslowdown_budget = nan", ["slowdown_budget = nan", "between"]),
        ("[limits]\nmax_clients = 1.5", ["max_clients = 1.5", "whole number"]),
        ("[limits]\nmax_clients = 0", ["max_clients = 0", "between 1 and"]),
        ("[daemon]\nlog_level = 'loud'", ['log_level = "loud"', "debug, info, warning, error"]),
        ("[daemon]\nruntime_dir = ''", ["runtime_dir", "must be a path"]),
        ('[daemon]\nruntime_dir = "a\\u0000b"', ["runtime_dir", "must be a path"]),
        ("[access]\nallow_users = 'root'", ["allow_users", '"*" or a list']),
        ("[access]\nallow_users = ['no-such-user-here']", ["allow_users", "no-such-user-here"]),
        ("[access]\nallow_users = [true]", ["allow_users", "true is neither"]),
        ("[access]\nadmin_group = ''", ["admin_group", "name of a group"]),
        ("[limits]\nmax_clients = " + "9" * 5000, ["not TOML"]),
        ("[limits]\nsilence_s = 0x" + "f" * 5000, ["a number of 20000 bits", "between"]),
        ("[limits]\nslowdown_budget = inf", ["slowdown_budget = inf", "between"]),
        ("[daemon]\nruntime_dir = 'a" + "/b" * 99 + "'", ["at most 107"]),
        ("[daemon\n", ["not TOML", "line 1"]),
    ],
)
def test_what_is_wrong_is_refused_with_its_fix(tmp_path: Path, text: str, parts: list[str]) -> None:
    """A refusal names the file, the key and the value, and says what to write instead."""
    message = refusal(tmp_path, text)
    for part in parts:
        assert part in message
    assert message.startswith(f"{tmp_path / 'perseusd.toml'}: ") or "Unix socket" in message


def test_an_unknown_or_wrong_flag_is_refused(tmp_path: Path) -> None:
    """Overrides are checked like the file, and named as the flags they are."""
    assert "--simulate = 0: must lie between 1 and 1024" in refusal(tmp_path, "", {"simulate": 0})
    assert "did you mean simulate?" in refusal(tmp_path, "", {"simulat": 3})


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a directory and a file of bytes are configuration errors, not tracebacks."""
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    for file, part in [
        (tmp_path / "absent.toml", "no such file"),
        (tmp_path, "cannot be read"),
        (binary, "byte 0 is not UTF-8"),
    ]:
        with pytest.raises(ConfigurationError, match=part):
            load_config(file, {}, {})


def test_a_runtime_directory_too_long_for_a_socket() -> None:
    """A socket path over the kernel's 107 bytes is refused at once, with its length and the fix."""
    longest = "/" + "d" * (107 - len("//control.sock"))
    assert load_config(None, {"runtime_dir": longest}, {}).runtime_dir == Path(longest)
    with pytest.raises(ConfigurationError, match=r"108 bytes.*at most 107.*--runtime-dir"):
        load_config(None, {"runtime_dir": longest + "d"}, {})
    with pytest.raises(ConfigurationError, match="at most 107"):
        load_config(None, {"clock_socket": "/" + "ä" * 60}, {})


def test_who_may_hold_a_lease() -> None:
    """ "*" lets in every user; a list lets in those alone."""
    assert load_config(None, {"allow_users": "*"}, {}).allows(12345)
    some = load_config(None, {"allow_users": ["root", 7]}, {})
    assert (some.allows(0), some.allows(7), some.allows(8)) == (True, True, False)


@given(st.binary(max_size=200))
def test_any_bytes_are_configuration_or_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    """Whatever the file holds, loading it raises ConfigurationError or nothing."""
    file = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    file.write_bytes(data)
    with contextlib.suppress(ConfigurationError):
        load_config(file, {}, {})


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.sampled_from(sorted(Config.__dataclass_fields__)), json_like)
def test_any_value_of_any_option_is_taken_or_refused(name: str, value: object) -> None:
    """No type or value of an option gets past its check as another kind of error."""
    with contextlib.suppress(ConfigurationError):
        load_config(None, {name: value}, {})
