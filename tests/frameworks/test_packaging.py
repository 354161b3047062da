"""The wheel of perseus-hooks, as a user installs it into an environment that has torch."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HOOKS = Path(__file__).parents[2] / "hooks"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
ADDED = {"perseus-hooks", "pyzmq", "msgpack"}


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def closure(name: str, found: set[str] | None = None) -> set[str]:
    """A distribution that is installed here, and what it requires."""
    found = set() if found is None else found
    if (key := canonicalize_name(name)) not in found:
        found.add(key)
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                closure(requirement.name, found)
    return found


def link(name: str, site: Path) -> None:
    """An installed distribution in another environment: pip lists it, and its modules are found.

    Folders are made and files are links, so nothing done there can change this environment.
    """
    distribution = importlib.metadata.distribution(name)
    files = [Path(str(file)) for file in distribution.files or ()]
    tops = {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}
    for top in tops:
        source = Path(str(distribution.locate_file(top)))
        if source.is_dir():
            shutil.copytree(source, site / top, copy_function=os.symlink, dirs_exist_ok=True)
        else:
            (site / top).symlink_to(source)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(HOOKS))
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with torch, numpy and what they require."""
    present = closure("torch") | closure("numpy")
    root = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", str(root))
    paths = sysconfig.get_paths("venv", {"base": str(root), "platbase": str(root)})
    for name in present:
        link(name, Path(paths["purelib"]))
    return root / "bin" / "python"


def installed(python: Path) -> dict[str, str]:
    """Versions by name, as pip lists them."""
    listed = json.loads(run(*PIP, "--python", str(python), "list", "--format", "json"))
    return {canonicalize_name(entry["name"]): entry["version"] for entry in listed}


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    """Every module of perseus_hooks, its metadata, and nothing else: no tests, no daemon."""
    names = zipfile.ZipFile(wheel).namelist()
    modules = {str(file.relative_to(HOOKS)) for file in (HOOKS / "perseus_hooks").rglob("*.py")}
    assert {name for name in names if ".dist-info/" not in name} == modules
    assert not any("test_" in name or "conftest" in name for name in names)


def test_installing_it_beside_torch_changes_nothing_else(wheel: Path, python: Path) -> None:
    """It adds itself, pyzmq and msgpack; no other package comes, goes or changes its version.

    There it imports neither torch nor numpy, though both could be, nor the daemon's package, and
    takes calls without a daemon.
    """
    before = installed(python)
    assert {"torch", "numpy"} <= set(before)
    assert not ADDED & set(before)
    run(*PIP, "--python", str(python), "install", "--quiet", str(wheel))
    after = installed(python)
    assert {name: version for name, version in after.items() if name not in ADDED} == before
    assert set(after) == set(before) | ADDED
    said = run(
        str(python),
        "-I",
        "-X",
        "dev",
        "-c",
        "import sys, importlib.util, perseus_hooks\n"
        "perseus_hooks.configure(job='job', runtime_dir='/nonexistent')\n"
        "with perseus_hooks.stage('forward'): pass\n"
        "perseus_hooks.close()\n"
        "assert not {'torch', 'numpy', 'perseusd', 'jax'} & set(sys.modules)\n"
        "assert importlib.util.find_spec('torch') and importlib.util.find_spec('numpy')\n"
        "assert importlib.util.find_spec('perseusd') is None\n"
        "print(perseus_hooks.__file__)",
    )
    assert Path(said.strip()).is_relative_to(python.parent.parent)


@pytest.mark.parametrize(
    "file", sorted(HOOKS.rglob("*.py")), ids=lambda file: str(file.relative_to(HOOKS))
)
def test_python_3_9_can_read_it(file: Path) -> None:
    """No later syntax; and annotations stay unevaluated, since `X | None` is no type there."""
    tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 9))
    annotated = any(
        isinstance(node, ast.AnnAssign)
        or getattr(node, "annotation", None)
        or getattr(node, "returns", None)
        for node in ast.walk(tree)
    )
    futures = [
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
        for alias in node.names
    ]
    assert not annotated or "annotations" in futures
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id == "zip":
            assert "strict" not in {keyword.arg for keyword in call.keywords}  # since 3.10
