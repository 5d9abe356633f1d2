"""`python -m engine.kernels.build`: becomes the ninja that compiles the modules given on stdin.

A process of its own, since FlashInfer reads its environment when it is imported: folders, toolkit
and architectures are set there by `engine.kernels.compiler`. The first line on stdout is JSON: the
library that each module will be. All lines after it are ninja's.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from engine.kernels.module import KernelModule

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    asked = json.load(sys.stdin)
    end_with(asked["parent"])
    modules = [KernelModule.of_json(content) for content in asked["modules"]]
    from flashinfer.jit import cpp_ext, env

    specs = [module.spec() for module in modules]
    for spec in specs:
        spec.write_ninja()
    together = Path(env.FLASHINFER_JIT_DIR) / "together.ninja"
    lines = ["ninja_required_version = 1.3", *(f"subninja {spec.ninja_path}" for spec in specs)]
    together.write_text("\n".join([*lines, ""]), encoding="utf-8")
    libraries = {spec.name: str(spec.jit_library_path) for spec in specs}
    print(json.dumps({"libraries": libraries, "cuda": str(cpp_ext.get_cuda_version())}), flush=True)
    command = ["ninja", "-C", str(together.parent), "-f", together.name, "-j", str(asked["jobs"])]
    os.execvp("ninja", command)  # noqa: S606, S607 - the one that FlashInfer runs


def end_with(parent: int) -> None:
    """Be asked to stop when `parent` is gone; ninja then ends the compilers that it runs."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # an engine's process ignores them
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(1)


if __name__ == "__main__":
    main()
