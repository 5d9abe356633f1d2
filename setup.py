"""Compile the kernels for the CPU; copy `conf/` and `recipes/` into the wheel as its `_data/`."""

import importlib.util
import platform
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

found = importlib.util.spec_from_file_location("build_native", Path("engine/native/build.py"))
native = importlib.util.module_from_spec(found)
found.loader.exec_module(native)

COMPILED = sys.platform.startswith("linux") and platform.machine() in native.VARIANTS


class BuildWithData(build_py):
    def run(self) -> None:
        super().run()
        root = Path("." if self.editable_mode else self.build_lib)
        self.build_kernels(root / "engine" / "native")
        # a checkout reads its own folders
        for name in () if self.editable_mode else ("conf", "recipes"):
            target = root / "appliance" / "_data" / name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(name, target, ignore=shutil.ignore_patterns("__pycache__"))

    def build_kernels(self, folder: Path) -> None:
        """Without a library everything runs by torch's operators, so none is no error."""
        (folder / native.LIBRARY).unlink(missing_ok=True)  # never one of other sources
        try:
            native.build(folder)
        except native.NotBuilt as error:
            print(f"warning: without kernels for the CPU: {error}", file=sys.stderr)


class Wheel(bdist_wheel):
    """One for every Python of this kind of machine: the library is no module of Python's."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, machine = super().get_tag()
        return ("py3", "none", machine) if COMPILED else (python, abi, machine)


class WithLibrary(Distribution):
    def has_ext_modules(self) -> bool:
        return COMPILED


setup(
    distclass=WithLibrary,
    cmdclass={"build_py": BuildWithData, "bdist_wheel": Wheel},
    # pip brings it into the environment that it builds in, where the machine has no compiler
    setup_requires=["ziglang>=0.13"] if COMPILED and not native.compilers() else [],
)
