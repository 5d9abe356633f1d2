"""What a card machine lacks beside torch and transformers, derived and not listed.

Needed is what `dependencies` of pyproject.toml and its extras `cuda` and `signatures` say (the
latter being what FlashInfer imports), in the versions of requirements.lock; there is what torch
and transformers bring, or what that machine says it has.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.bundle.errors import BundleError
from tools.bundle.index import Index, Package

EXTRAS = ("cuda", "signatures")
FLASHINFER = "flashinfer-python"  # carried trimmed
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\+]+)", re.M)
DIGEST = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(slots=True, frozen=True)
class Missing:
    """What is to be carried, and what of the machine's own that needs: name to specifiers."""

    packages: dict[str, Package]
    beside: dict[str, str]
    there: dict[str, str]  # all that is there, by versions
    locked: bool  # the versions are the lock's


def declared(checkout: Path) -> list[str]:
    """What the appliance and the imports of FlashInfer need."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in EXTRAS:
        lines += project["optional-dependencies"][extra]
    return [one for one in lines if canonicalize_name(Requirement(one).name) != FLASHINFER]


def allowed(checkout: Path) -> Requirement:
    """The FlashInfer that the appliance runs with."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    extra = map(Requirement, project["optional-dependencies"]["cuda"])
    return next(one for one in extra if canonicalize_name(one.name) == FLASHINFER)


def pins(text: str) -> dict[str, str]:
    """Versions by canonical name, of a lock or a list of what is installed."""
    return {canonicalize_name(name): version for name, version in PINNED.findall(text)}


def listed(file: Path) -> dict[str, str]:
    """What a machine has, by `pip list --format=freeze`. Raises BundleError for other lists."""
    text = file.read_text()
    found = pins(text)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if odd := [line for line in lines if not PINNED.match(line)]:
        raise BundleError(
            f"'{file}' says no version in '{odd[0]}': `python3 -m pip list --format=freeze` does"
        )
    if lacking := {"torch", "transformers"} - set(found):
        raise BundleError(f"'{file}' lists no {' and no '.join(sorted(lacking))}")
    return found


def digests(text: str) -> dict[str, list[str]]:
    """Digests by `name==version`, of requirements.hashes."""
    found = {}
    for block in re.sub(r"\\\n", " ", text).splitlines():
        if match := PINNED.match(block):
            found[f"{canonicalize_name(match[1])}=={match[2]}"] = DIGEST.findall(block)
    return found


def without(wanted: Iterable[str], left_out: Collection[str]) -> list[str]:
    """Requirements but those left out. Raises BundleError for a name that nobody asks for."""
    names = {canonicalize_name(Requirement(one).name): one for one in wanted}
    if unknown := sorted(set(map(canonicalize_name, left_out)) - set(names)):
        raise BundleError(
            f"{', '.join(unknown)} cannot be left out: the appliance itself asks for "
            f"{', '.join(sorted(names))}"
        )
    return [line for name, line in names.items() if name not in map(canonicalize_name, left_out)]


def find_missing(
    index: Index, wanted: list[str], there: dict[str, str] | list[str], lock: dict[str, str]
) -> Missing:
    """What `wanted` needs and is not there.

    `there` are versions by name, or requirements that everything there was installed by.
    """
    if isinstance(there, list):
        there = {name: one.version for name, one in index.resolve(there).items()}
    wanted = [*wanted, *(f"{name}=={there[name]}" for name in ("torch", "transformers"))]
    held = [f"{name}=={version}" for name, version in there.items()]
    locks = [f"{name}=={version}" for name, version in lock.items() if name not in there]
    index.build(locks)
    locked = True
    try:
        needed = index.resolve(wanted, [*held, *locks])
    except BundleError:  # what is there may not go with what the lock was made for
        needed = index.resolve(wanted, held)
        locked = False
    packages = {name: one for name, one in needed.items() if name not in there}
    return Missing(packages, _beside(index, wanted, packages, there), there, locked)


def _beside(
    index: Index, wanted: list[str], packages: dict[str, Package], there: dict[str, str]
) -> dict[str, str]:
    """What the carried packages and the appliance ask of the machine's own."""
    asked: dict[str, set[str]] = {}
    lines = [*wanted, *(line for one in packages.values() for line in one.requires)]
    for need in map(Requirement, lines):
        name = canonicalize_name(need.name)
        if name in there and index.target.applies(need):
            asked.setdefault(name, set()).update(str(need.specifier).split(","))
    # torch's own version is compared by itself
    exact = {f"=={there[name]}" for name in ("torch", "transformers")}
    return {
        name: ",".join(sorted(one for one in bounds - exact if one))
        for name, bounds in sorted(asked.items())
    }
