"""`python -m tools.lock FILE PIN …` writes the versions of all that the appliance runs with.

They are what a clean environment gets when `dependencies` of pyproject.toml are installed with the
pins that are given. It needs a package index; nothing of where packages come from is written.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
HEAD = """\
# Versions of all that the appliance runs with, resolved by `make lock` with CPython {python} on
# {system}. Constraints: what another Python or machine does not need, it does not install.
"""


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
    with tempfile.TemporaryDirectory(prefix="lock-") as folder:
        lines = versions([*argv[1:], *project["dependencies"]], Path(folder))
    head = HEAD.format(
        python=".".join(platform.python_version_tuple()[:2]),
        system=f"{platform.system()} {platform.machine()}",
    )
    Path(argv[0]).write_text(head + "\n".join(sorted(lines, key=str.lower)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
