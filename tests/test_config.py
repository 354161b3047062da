"""The configuration: where values come from, what is refused, and how the refusal reads."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.config import (
    OPTIONS,
    Config,
    Reading,
    Sources,
    load_config,
    read_config,
    runtime_environment,
)
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


def test_what_is_said_of_every_option_is_as_it_is() -> None:
    """docs/configuration.md and systemd/perseusd.toml are what scripts/configuration writes."""
    root = Path(__file__).parents[1]
    command = [sys.executable, str(root / "scripts" / "configuration"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_example_is_the_defaults_but_for_the_units_socket(tmp_path: Path) -> None:
    """Every key that the example comments out has its default there, and none is missing."""
    example = (Path(__file__).parents[1] / "systemd" / "perseusd.toml").read_text()
    assert loaded(tmp_path, example) == load_config(
        None, {"clock_socket": "/run/perseusd-clock/clock.sock"}, {}
    )
    bare = "\n".join(
        line.removeprefix("# ") if line.startswith("# ") and " = " in line else line
        for line in example.splitlines()
    )
    found = tomllib.loads(bare)
    named = {(section, key) for section, keys in found.items() for key in keys}
    assert named == {(o.section, o.key) for o in OPTIONS.values() if o.section}
    assert loaded(tmp_path, bare) == loaded(tmp_path, example)


def test_the_readmes_keys_have_their_defaults(tmp_path: Path) -> None:
    """What the README shows of the configuration is valid, and nothing but defaults."""
    readme = Path(__file__).parents[1] / "README.md"
    block = readme.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    assert loaded(tmp_path, block) == load_config(None, {}, {})


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


def read(
    tmp_path: Path, text: str, drop_ins: Mapping[str, str], environ: Mapping[str, str]
) -> Reading:
    """A file, the files of the conf.d beside it, and an environment."""
    file = written(tmp_path, text)
    (tmp_path / "conf.d").mkdir()
    for name, own in drop_ins.items():
        (tmp_path / "conf.d" / name).write_text(own)
    return read_config(Sources(file, {"log_level": "error"}, environ))


def test_every_value_knows_where_it_comes_from(tmp_path: Path) -> None:
    """conf.d after the file, the last by name first; then the environment; then flags. Hidden files
    and those that are not .toml count for nothing."""
    config, origins, problems = read(
        tmp_path,
        "[limits]\nsilence_s = 1\nmax_clients = 1\nevents_per_s = 1\nsilence_iterations = 1",
        {
            "10.toml": "[limits]\nmax_clients = 2\nevents_per_s = 2\nsilence_iterations = 2",
            "9.toml": "[limits]\nmax_clients = 3\nsilence_iterations = 3",
            "z.toml~": "[limits]\nmax_clients = 4",
            ".z.toml": "nothing = true",
        },
        {"PERSEUSD_LIMITS_SILENCE_ITERATIONS": "5", "PERSEUSD_DAEMON_LOG_LEVEL": "debug"},
    )
    assert problems == ()
    assert config is not None
    found = {
        name: (getattr(config, name), str(origins[name]).replace(f"{tmp_path}/", ""))
        for name in ("silence_s", "max_clients", "events_per_s", "silence_iterations", "log_level")
    }
    assert found == {
        "silence_s": (1.0, "perseusd.toml"),
        "max_clients": (3, "conf.d/9.toml"),
        "events_per_s": (2, "conf.d/10.toml"),
        "silence_iterations": (5, "environment PERSEUSD_LIMITS_SILENCE_ITERATIONS"),
        "log_level": ("error", "--log-level"),
    }
    assert str(origins["observe"]) == "default"


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """Of the file, of conf.d, of the environment and of flags: each names its place."""
    reading = read(
        tmp_path,
        "[limits]\nsilence_s = '5'\n[daemon]\nobserv = true",
        {"a.toml": "[limits]\nmax_clients = 0", "b.toml": "[limits"},
        {"PERSEUSD_DAEMON_OBSERVE": "yes", "PERSEUSD_DAEMON_LOG_LEVL": "debug"},
    )
    assert reading.config is None
    lines = [str(problem).replace(f"{tmp_path}/", "") for problem in reading.problems]
    assert lines[:3] == [
        'perseusd.toml: [limits] silence_s = "5": must be a number from 0.1 to 3600',
        "perseusd.toml: [daemon] observ = true: unknown key; did you mean observe?",
        "conf.d/a.toml: [limits] max_clients = 0: must lie between 1 and 1000000",
    ]
    assert lines[3].startswith("conf.d/b.toml: not TOML")
    assert lines[4:] == [
        'environment PERSEUSD_DAEMON_LOG_LEVL = "debug": unknown variable; did you mean '
        "PERSEUSD_DAEMON_LOG_LEVEL?",
        'environment PERSEUSD_DAEMON_OBSERVE = "yes": must be true or false',
    ]
    with pytest.raises(ConfigurationError, match=r"4 problems:\n  /.*\n  /.*\n  /.*\n  /"):
        load_config(tmp_path / "perseusd.toml", {}, {})


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("PERSEUSD_DAEMON_OBSERVE", "true", "observe", True),
        ("PERSEUSD_LIMITS_SLOWDOWN_BUDGET", "0.02", "slowdown_budget", 0.02),
        ("PERSEUSD_LIMITS_MAX_CLIENTS", "12", "max_clients", 12),
        ("PERSEUSD_CLOCK_SOCKET", "/run/a socket", "clock_socket", Path("/run/a socket")),
        ("PERSEUSD_ACCESS_ADMIN_GROUP", "1000", "admin_group", "1000"),
        ("PERSEUSD_ACCESS_ALLOW_USERS", "root, 1000", "allow_users", frozenset({0, 1000})),
        ("PERSEUSD_ACCESS_ALLOW_USERS", '["root", 7]', "allow_users", frozenset({0, 7})),
        ("PERSEUSD_ACCESS_ALLOW_USERS", "*", "allow_users", None),
        ("PERSEUSD_DAEMON_LOG_LEVEL", "", "log_level", "info"),
        ("PERSEUSD_DAEMON_RUNTIME_DIR", "/r", "state_dir", Path("/r/state")),
    ],
)
def test_the_environment_reaches_every_kind_of_option(
    variable: str, text: str, name: str, value: object
) -> None:
    """A variable's text is what the file would hold, text without quotes; an empty one is unset."""
    assert getattr(load_config(None, {}, {variable: text}), name) == value


def test_variables_of_kubernetes_are_nobodys_mistake() -> None:
    """Those it sets for services named perseusd and perseusd-metrics pass; the like does not."""
    injected = {
        "PERSEUSD_SERVICE_HOST": "10.0.0.1",
        "PERSEUSD_SERVICE_PORT": "80",
        "PERSEUSD_SERVICE_PORT_HTTP": "80",
        "PERSEUSD_PORT": "tcp://10.0.0.1:80",
        "PERSEUSD_PORT_80_TCP": "tcp://10.0.0.1:80",
        "PERSEUSD_PORT_80_TCP_PROTO": "tcp",
        "PERSEUSD_PORT_80_TCP_ADDR": "10.0.0.1",
        "PERSEUSD_METRICS_SERVICE_HOST": "10.0.0.2",
        "PERSEUSD_METRICS_PORT": "tcp://10.0.0.2:9090",
        "PERSEUSD_METRICS_PORT_9090_TCP_PORT": "9090",
    }
    assert load_config(None, {}, injected) == load_config(None, {}, {})
    for name, text in [("PERSEUSD_PORT", "80"), ("PERSEUSD_SERVICE", "x"), ("PERSEUSD_", "x")]:
        with pytest.raises(ConfigurationError, match="unknown variable"):
            load_config(None, {}, {name: text})


def test_two_runtime_directories_in_one_environment_are_refused() -> None:
    """Hooks would look in one of them for a daemon that is in the other; the same one twice is no
    problem. perseusctl reads these two variables, and none of the daemon's others."""
    two = {"PERSEUS_RUNTIME_DIR": "/a", "PERSEUSD_DAEMON_RUNTIME_DIR": "/b"}
    with pytest.raises(ConfigurationError, match='PERSEUS_RUNTIME_DIR says "/a"'):
        load_config(None, {}, two)
    same = dict.fromkeys(two, "/a")
    assert load_config(None, {}, same).runtime_dir == Path("/a")
    assert runtime_environment({**two, "PERSEUSD_DAEMON_OBSERVE": "x", "HOME": "/"}) == two


def test_a_conf_d_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    """A file where the directory should be, and a directory where a file should be."""
    file = written(tmp_path, "")
    (tmp_path / "conf.d").write_text("")
    with pytest.raises(ConfigurationError, match=r"conf\.d: cannot be read \(Not a directory\)"):
        load_config(file, {}, {})
    (tmp_path / "conf.d").unlink()
    (tmp_path / "conf.d" / "x.toml").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"x\.toml: cannot be read \(Is a directory\)"):
        load_config(file, {}, {})


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
        ("[clock]\nzzz = 1", ["zzz = 1", "known here: heartbeat_s, node_lock, socket"]),
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
    assert load_config(None, {"allow_users": "*"}, {}).allow_users is None
    some = load_config(None, {"allow_users": ["root", 7]}, {})
    assert some.allow_users == {0, 7}


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


@given(
    st.dictionaries(
        st.sampled_from(sorted(filter(None, (o.variable for o in OPTIONS.values())))),
        st.text(max_size=20),
    )
)
def test_any_text_of_any_variable_is_taken_or_refused(environ: dict[str, str]) -> None:
    """Whatever the environment holds, loading it raises ConfigurationError or nothing."""
    with contextlib.suppress(ConfigurationError):
        load_config(None, {}, environ)


def test_a_standing_lock_is_one_clock_or_a_table(tmp_path: Path) -> None:
    """For all GPUs, or by UUID and model; beside a clock process of its own it is refused."""
    assert loaded(tmp_path, "[clock]\nstanding_lock_mhz = 1305").standing_lock_mhz == {"*": 1305}
    table = '[clock]\nstanding_lock_mhz = { "GPU-1" = 1200, "NVIDIA A40" = 1500 }'
    assert loaded(tmp_path, table).standing_lock_mhz == {"GPU-1": 1200, "NVIDIA A40": 1500}
    for wrong in ("0", "70000", '"fast"', '{ "GPU-1" = true }'):
        with pytest.raises(ConfigurationError, match="a clock in MHz"):
            loaded(tmp_path, f"[clock]\nstanding_lock_mhz = {wrong}")
    with pytest.raises(ConfigurationError, match="CLOCK_OPTIONS"):
        loaded(tmp_path, '[clock]\nsocket = "/run/x"\nstanding_lock_mhz = 1305')
