"""`python -m tools.lock FOLDER PIN …` writes the versions of all that the appliance runs with.

They are what a clean environment gets when `dependencies` of pyproject.toml are installed with the
pins that are given: `requirements.lock`. `requirements.hashes` has the same with the digests of all
files of each version, but for what is pinned, whose builds come from several indexes. It needs a
package index; nothing of where packages come from is written.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version
from pip._internal.models.index import PyPI

CHECKOUT = Path(__file__).resolve().parents[1]
HEAD = """\
# Versions of all that the appliance runs with, resolved by `make lock` with CPython {python} on
# {system}. Constraints: what another Python or machine does not need, it does not install.
"""


HASHED_HEAD = """\
# The files of `requirements.lock`, by `make lock`: pip install --require-hashes --no-deps -r this
"""
SIMPLE = "application/vnd.pypi.simple.v1+json"
AT_ONCE = 8


def hashed(line: str) -> str:
    """A line of the lock with the SHA-256 of every file that an index has of that version."""
    name, version = line.split("==")
    index = os.environ.get("PIP_INDEX_URL") or PyPI.simple_url
    url = f"{index.rstrip('/')}/{canonicalize_name(name)}/"
    asked = urllib.request.Request(url, headers={"Accept": SIMPLE})  # noqa: S310 - pip's own index
    with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310 - pip's own index
        files = json.load(answer)["files"]
    found = {
        one["hashes"]["sha256"] for one in files if version_of(one["filename"]) == Version(version)
    }
    if not found:
        raise ValueError(f"the index has no file of {line}")
    return " \\\n".join([line, *(f"    --hash=sha256:{digest}" for digest in sorted(found))])


def version_of(filename: str) -> Version | None:
    """What a file of an index is a version of; None for a form that pip does not install."""
    try:
        if filename.endswith(".whl"):
            return parse_wheel_filename(filename)[1]
        return parse_sdist_filename(filename)[1]
    except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
        return None


def versions(requirements: Sequence[str], folder: Path) -> list[str]:
    """`name==version` of all packages that a clean environment in `folder` then holds."""
    # without pip and what comes with it, which need not be what would be chosen now
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    pip += ["--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", *requirements], check=True)
    freeze = [*pip, "freeze", "--all"]
    frozen = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout
    return [pinned(line) for line in frozen.splitlines()]


def pinned(line: str) -> str:
    """A line of `pip freeze` without the build of a version, which other indexes do not have.

    Raises ValueError for what does not come from an index.
    """
    match = re.fullmatch(r"([A-Za-z0-9._-]+==[^+@\s]+)(\+\S+)?", line)
    if match is None:
        raise ValueError(f"not a version of an index: {line}")
    return match[1]


def main(argv: Sequence[str]) -> int:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    pins = argv[1:]
    with tempfile.TemporaryDirectory(prefix="lock-") as made:
        lines = versions([*pins, *project["dependencies"]], Path(made))
    lines.sort(key=str.lower)
    head = HEAD.format(
        python=".".join(platform.python_version_tuple()[:2]),
        system=f"{platform.system()} {platform.machine()}",
    )
    folder = Path(argv[0])
    (folder / "requirements.lock").write_text(head + "\n".join(lines) + "\n")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        files = list(pool.map(hashed, [line for line in lines if line not in pins]))
    (folder / "requirements.hashes").write_text(HASHED_HEAD + "\n".join(files) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
