"""The lock names all that the appliance runs with, in versions that pyproject.toml allows."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.lock import pinned

CHECKOUT = Path(__file__).resolve().parents[2]
LOCK = (CHECKOUT / "requirements.lock").read_text()
DECLARED = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]


def locked(text: str) -> dict[str, str]:
    """Versions by name. Raises ValueError for a line that is no exact version."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, version = pinned(line).split("==")
        if found.setdefault(canonicalize_name(name), version) != version or "+" in line:
            raise ValueError(f"not one version of an index: {line}")
    return found


def faults(text: str, declared: list[str]) -> list[str]:
    """What is missing or out of range, also of what packages need that are installed as locked."""
    versions = locked(text)
    wrong, seen = [], set[str]()
    todo = [(Requirement(one), "pyproject.toml") for one in declared]
    while todo:
        need, by = todo.pop()
        name = canonicalize_name(need.name)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        if name not in versions:
            wrong.append(f"{name} is missing ({by})")
        elif not need.specifier.contains(versions[name], prereleases=True):
            wrong.append(f"{name} {versions[name]} is not {need.specifier} ({by})")
        if name in seen or name not in versions:
            continue
        seen.add(name)
        try:
            installed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if installed.version.partition("+")[0] == versions[name]:
            todo += [(Requirement(one), name) for one in installed.requires or []]
    return wrong


def test_the_lock_satisfies_what_is_declared_and_names_all_of_it() -> None:
    assert faults(LOCK, DECLARED) == []
    assert len(locked(LOCK)) > len(DECLARED)


def test_a_lock_that_misses_something_or_is_too_old_is_found() -> None:
    without = re.sub(r"(?m)^starlette==.*\n", "", LOCK)
    assert faults(without, DECLARED) == ["starlette is missing (pyproject.toml)"]
    old = re.sub(r"(?m)^starlette==.*$", "starlette==0.9", LOCK)
    assert any("starlette 0.9 is not" in fault for fault in faults(old, DECLARED))
    [beneath] = re.findall(r"(?m)^markupsafe==.*\n", LOCK, re.IGNORECASE)  # jinja2 needs it
    same = importlib.metadata.version("jinja2") == locked(LOCK)["jinja2"]
    assert bool(faults(LOCK.replace(beneath, ""), DECLARED)) == same


@pytest.mark.parametrize(
    "line",
    [
        "torch @ https://example.org/torch.whl",
        "-e git+https://example.org/x",
        "--index-url https://example.org",
        "torch>=2",
        "torch==2.13.0 --hash=sha256:0",
    ],
)
def test_a_lock_names_versions_and_no_host(line: str) -> None:
    with pytest.raises(ValueError, match="not a version"):
        locked(f"# head\n{line}\n")
    assert "://" not in LOCK


def test_a_build_of_a_version_is_dropped() -> None:
    assert pinned("torch==2.13.0+cpu") == "torch==2.13.0"


def test_torch_is_the_makefiles() -> None:
    [version] = re.findall(r"(?m)^TORCH = torch==([\d.]+)#", (CHECKOUT / "Makefile").read_text())
    assert locked(LOCK)["torch"] == version
