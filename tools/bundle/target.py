"""The Python and machine that a bundle is for, as pip and markers of requirements are told."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from packaging.requirements import Requirement

GLIBC = 28  # 2.28: what torch's own builds need
OLDEST_GLIBC = 5
LEGACY = {"x86_64": ("manylinux2014", "manylinux2010", "manylinux1"), "aarch64": ("manylinux2014",)}


@dataclass(slots=True, frozen=True)
class Target:
    """A CPython on Linux; `python` as "3.12", `machine` as uname says it."""

    python: str
    machine: str

    def pip(self) -> list[str]:
        """Options by which pip takes files for this Python, whichever it runs in itself."""
        # pip takes the names as they are: a wheel for an older glibc has the name of that one
        names = [f"manylinux_2_{minor}" for minor in range(GLIBC, OLDEST_GLIBC - 1, -1)]
        names += [*LEGACY.get(self.machine, ()), "linux"]
        told = ["--python-version", self.python, "--implementation", "cp", "--only-binary=:all:"]
        for name in names:
            told += ["--platform", f"{name}_{self.machine}"]
        return told

    def applies(self, requirement: Requirement, extras: frozenset[str] = frozenset()) -> bool:
        """Whether a requirement holds there, for a package with these extras."""
        if requirement.marker is None:
            return True
        here = {
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "os_name": "posix",
            "sys_platform": "linux",
            "platform_system": "Linux",
            "platform_machine": self.machine,
        }
        return any(requirement.marker.evaluate({**here, "extra": one}) for one in ("", *extras))


def running_python() -> str:
    return ".".join(platform.python_version_tuple()[:2])
