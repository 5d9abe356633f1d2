"""The lock names all that the appliance runs with, in versions that pyproject.toml allows."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.lock import pinned, version_of

CHECKOUT = Path(__file__).resolve().parents[2]
LOCK = (CHECKOUT / "requirements.lock").read_text()
HASHES = (CHECKOUT / "requirements.hashes").read_text()
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


def known_files(text: str) -> dict[str, int]:
    """How many files are known of each line of the lock. Raises ValueError for a line of others."""
    found: dict[str, int] = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.startswith("#"):
            continue
        what, *digests = line.split()
        if not digests or not all(
            re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in digests
        ):
            raise ValueError(f"not a version with its files: {line[:80]}")
        found[pinned(what)] = len(digests)
    return found


def test_all_that_is_locked_but_torch_is_known_by_its_files() -> None:
    lines = {line for line in LOCK.splitlines() if not line.startswith("#")}
    assert set(known_files(HASHES)) == {line for line in lines if not line.startswith("torch==")}
    assert "://" not in HASHES


@pytest.mark.parametrize("line", ["a==1", "a==1 --hash=md5:0", "a==1 --hash=sha256:12", "a>=1"])
def test_a_version_without_its_files_is_found(line: str) -> None:
    with pytest.raises(ValueError, match="not a version"):
        known_files(line)


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


@pytest.mark.parametrize(
    ("filename", "version"),
    [
        ("av-18.1.0-cp311-abi3-manylinux_2_28_x86_64.whl", "18.1.0"),
        ("antlr4-python3-runtime-4.9.3.tar.gz", "4.9.3"),
        ("pillow-12.0.0.post1.tar.gz", "12.0.0.post1"),
        ("old-1.0.win32.exe", None),
        ("old-1.0-py2.7.egg", None),
    ],
)
def test_a_file_is_known_by_its_name(filename: str, version: str | None) -> None:
    found = version_of(filename)
    assert (None if found is None else str(found)) == version


def test_a_build_of_a_version_is_dropped() -> None:
    assert pinned("torch==2.13.0+cpu") == "torch==2.13.0"


def test_torch_is_the_makefiles() -> None:
    [version] = re.findall(r"(?m)^TORCH = torch==([\d.]+)#", (CHECKOUT / "Makefile").read_text())
    assert locked(LOCK)["torch"] == version
