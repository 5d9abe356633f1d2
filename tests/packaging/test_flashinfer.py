"""FlashInfer changes between minor versions: the one that was checked is the one installed."""

from __future__ import annotations

import re
import tomllib

from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import CHECKOUT


def test_what_users_get_is_of_the_version_whose_signatures_are_checked() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["cuda"]
    (wanted,) = (Requirement(one) for one in extra if one.startswith("flashinfer"))
    found = re.search(r"^FLASHINFER = flashinfer-python==(\S+?)#", makefile(), re.M)
    assert found
    checked = Version(found[1])
    assert checked in wanted.specifier
    assert Version(f"{checked.major}.{checked.minor + 1}.0") not in wanted.specifier


def makefile() -> str:
    return (CHECKOUT / "Makefile").read_text()
