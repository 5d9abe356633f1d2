"""pip, asked for files of another Python and machine than it runs on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools.bundle.errors import BundleError
from tools.bundle.target import Target

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
NO_FILE = re.compile(r"No matching distribution found for ([A-Za-z0-9._-]+)")


@dataclass(slots=True, frozen=True)
class Package:
    """A version that pip chose, the requirements of it, and the digest of its file."""

    name: str  # canonical
    version: str
    requires: tuple[str, ...]
    python: str  # that it runs in, as ">=3.12"
    digest: str

    @property
    def pin(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(slots=True, frozen=True)
class Index:
    """What pip reaches, for one target. `built` gets the wheels that no index has."""

    target: Target
    built: Path

    def build(self, pins: Iterable[str]) -> None:
        """Make wheels of those `name==version` that an index has as a source alone.

        Only Python may be in them: what is compiled here need not run there. The others are left,
        and fail where they are needed.
        """
        left = list(pins)
        while left and (name := NO_FILE.search(self._report(left, no_deps=True)[0])):
            pin = next(one for one in left if one.partition("==")[0] == canonicalize_name(name[1]))
            left.remove(pin)
            self._run(["wheel", "--no-deps", "--wheel-dir", str(self.built), pin])
            for made in self.built.glob("*.whl"):
                if not made.name.endswith("-none-any.whl"):
                    made.unlink()

    def resolve(self, wanted: Iterable[str], constraints: Iterable[str] = ()) -> dict[str, Package]:
        """The packages by name that requirements need there, each in its version.

        Raises BundleError if there are none.
        """
        asked, limits = list(wanted), list(constraints)
        while True:
            failed, packages = self._report(asked, limits)
            if failed:
                raise BundleError(f"pip finds no versions that go together: {failed}")
            # pip reads markers, and which Python a version is for, as for the one that it runs in
            closed, unknown = closure(packages, asked, self.target)
            unfit = [f"{one.name}!={one.version}" for one in closed.values() if not self._fits(one)]
            if not unknown and not unfit:
                return closed
            asked += unknown
            limits += unfit

    def download(
        self, packages: Iterable[Package], digests: dict[str, list[str]], to: Path
    ) -> None:
        """Fetch the wheels; with `digests` of a pin the file must have one of them."""
        lines = []
        for one in packages:
            made = [file for file in self.built.glob("*.whl") if _is(file, one)]
            if made:
                (to / made[0].name).write_bytes(made[0].read_bytes())
                continue
            known = digests.get(one.pin) or [one.digest]
            lines.append(" ".join([one.pin, *(f"--hash=sha256:{digest}" for digest in known)]))
        if not lines:
            return
        with tempfile.TemporaryDirectory(prefix="bundle-") as made_here:
            file = Path(made_here) / "requirements"
            file.write_text("\n".join(lines) + "\n")
            told = ["download", "--no-deps", "--require-hashes", "--ignore-requires-python"]
            told += ["--dest", str(to)]
            self._run([*told, *self.target.pip(), "--requirement", str(file)])

    def fetch(self, pin: str, to: Path) -> Path:
        """One wheel by its pin, whatever its digest."""
        self._run(["download", "--no-deps", "--dest", str(to), *self.target.pip(), pin])
        return next(to.glob("*.whl"))

    def _report(
        self, wanted: Sequence[str], limits: Sequence[str] = (), *, no_deps: bool = False
    ) -> tuple[str, dict[str, Package]]:
        """Why pip fails, or what it would install."""
        with tempfile.TemporaryDirectory(prefix="bundle-") as made:
            folder = Path(made)
            (folder / "limits").write_text("\n".join(limits) + "\n")
            told = [*PIP, "install", "--dry-run", "--ignore-installed", "--ignore-requires-python"]
            told += ["--no-deps"] if no_deps else ["--constraint", str(folder / "limits")]
            told += ["--target", str(folder / "target"), "--report", str(folder / "report")]
            told += ["--find-links", str(self.built), *self.target.pip(), *wanted]
            ran = subprocess.run(told, capture_output=True, text=True, check=False)
            if ran.returncode:
                return _reason(ran), {}
            report = json.loads((folder / "report").read_text())
        packages = map(_package, report["install"])
        return "", {one.name: one for one in packages}

    def _fits(self, package: Package) -> bool:
        return SpecifierSet(package.python).contains(f"{self.target.python}.0")

    def _run(self, told: Sequence[str]) -> None:
        ran = subprocess.run([*PIP, *told], capture_output=True, text=True, check=False)
        if ran.returncode:
            raise BundleError(f"pip {told[0]} failed: {_reason(ran)}")


def closure(
    packages: dict[str, Package], wanted: Iterable[str], target: Target
) -> tuple[dict[str, Package], list[str]]:
    """Of `packages` those that the target needs for `wanted`, and requirements that none meets."""
    todo = [Requirement(one) for one in wanted]
    found: dict[str, Package] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    unknown = []
    while todo:
        need = todo.pop()
        name, extras = canonicalize_name(need.name), frozenset(need.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name not in packages:
            need.marker = None
            unknown.append(str(need))
            continue
        found[name] = packages[name]
        requires = map(Requirement, packages[name].requires)
        todo += [one for one in requires if target.applies(one, extras)]
    return found, unknown


def _package(item: dict[str, object]) -> Package:
    metadata, file = item["metadata"], item["download_info"]
    assert isinstance(metadata, dict)
    assert isinstance(file, dict)
    return Package(
        name=canonicalize_name(metadata["name"]),
        version=str(metadata["version"]).partition("+")[0],
        requires=tuple(metadata.get("requires_dist", ())),
        python=str(metadata.get("requires_python") or ""),
        digest=file.get("archive_info", {}).get("hashes", {}).get("sha256", ""),
    )


def _is(file: Path, package: Package) -> bool:
    name, version = file.name.split("-")[:2]
    return canonicalize_name(name) == package.name and version == package.version


def _reason(ran: subprocess.CompletedProcess[str]) -> str:
    """What pip says of a failure, in one line."""
    _, _, conflict = ran.stdout.partition("The conflict is caused by:\n")
    if conflict:
        lines = conflict.partition("\n\n")[0].splitlines()
        return "; ".join(line.strip() for line in lines)
    lines = [line.removeprefix("ERROR: ") for line in ran.stderr.splitlines() if "ERROR" in line]
    return lines[-1] if lines else f"exit code {ran.returncode}"
