"""Kernels are compiled together by FlashInfer's own build files, here with a toolkit of scripts."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine.kernels import compiler
from engine.kernels.compiler import CompilingFailed, Target, compile_modules
from engine.kernels.folder import KernelFolder
from engine.kernels.module import KernelModule
from engine.kernels.needed import NORM, PAGE, gating
from tests.attack.wire import until
from tests.conftest import CHECKOUT
from tests.engine.kernels.toolkit import Toolkit

pytest.importorskip("flashinfer", reason="FlashInfer is not installed")

MODULES = (PAGE, gating("silu"))


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toolkit:
    made = Toolkit(tmp_path)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(tmp_path / "kernels", ("8.9", "9.0a"))


def nothing(done: int, total: int, fraction: float) -> None:
    """`Report` that goes nowhere."""


def test_all_are_compiled_together_and_told_of(toolkit: Toolkit, target: Target) -> None:
    told: list[tuple[int, int, float]] = []
    compile_modules(MODULES, target, 2, lambda *progress: told.append(progress))
    folder = KernelFolder(target.folder)
    assert folder.intact() == {"page", "silu_and_mul"}
    assert folder.library("page").read_text() == "library\n"
    manifest = folder.manifest()
    assert manifest is not None
    assert manifest.versions.cuda == "13.0"
    assert manifest.architectures == ("8.9", "9.0a")
    assert told[0] == (0, 2, 0.0)
    assert told[-1] == (2, 2, 1.0)
    assert told == sorted(told)
    assert all("code=sm_89 " in line and "code=sm_90a " in line for line in toolkit.compiled)
    assert sorted(file.name for file in target.folder.iterdir()) == [
        ".lock",
        "manifest.json",
        "page",
        "silu_and_mul",
    ]


def test_what_is_there_is_not_compiled_again(toolkit: Toolkit, target: Target) -> None:
    compile_modules(MODULES, target, 2, nothing)
    before = len(toolkit.compiled)
    compile_modules(MODULES, target, 2, nothing)
    assert len(toolkit.compiled) == before
    compile_modules((*MODULES, gating("gelu_tanh")), target, 2, nothing)
    assert 0 < len(toolkit.compiled) - before < before
    assert KernelFolder(target.folder).intact() == {"page", "silu_and_mul", "gelu_tanh_and_mul"}
    KernelFolder(target.folder).library("page").write_text("damaged")
    compile_modules(MODULES, target, 2, nothing)
    assert KernelFolder(target.folder).library("page").read_text() == "library\n"


def test_what_does_not_compile_is_told_in_one_line_and_gone_on_with(
    toolkit: Toolkit, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    toolkit.fail('case "$*" in *page*) echo "page.cu(7): error: no such thing" >&2; exit 1;; esac')
    with pytest.raises(CompilingFailed, match=r"page\.cu\(7\): error: no such thing") as told:
        compile_modules(MODULES, target, 1, nothing)
    assert "\n" not in str(told.value)
    assert "no such thing" in caplog.text
    assert KernelFolder(target.folder).manifest() is None
    toolkit.fail("")
    compile_modules(MODULES, target, 1, nothing)
    assert KernelFolder(target.folder).intact() == {"page", "silu_and_mul"}


def test_a_name_that_flashinfer_no_longer_has_is_told(toolkit: Toolkit, target: Target) -> None:
    """Another version may call a module something else; then the list is wrong, and says so."""
    renamed = KernelModule("pages", PAGE.maker)
    with pytest.raises(CompilingFailed, match="makes page, not pages"):
        compile_modules([renamed], target, 1, nothing)


def test_a_folder_that_cannot_be_written_to_is_told(toolkit: Toolkit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CompilingFailed, match=r"set kernels\.folder to one that can be written"):
        compile_modules(MODULES, Target(tmp_path / "file" / "kernels", ("9.0a",)), 1, nothing)


def test_a_full_disk_is_told(
    toolkit: Toolkit, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(CompilingFailed, match=r"cannot be kept in .*No space left"):
        compile_modules([PAGE], target, 1, nothing)
    assert KernelFolder(target.folder).manifest() is None


def test_two_at_once_compile_it_once(toolkit: Toolkit, target: Target) -> None:
    toolkit.fail("sleep 0.2")
    threads = [
        threading.Thread(target=compile_modules, args=(MODULES, target, 2, nothing))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sources = [line.split(" -o ")[1] for line in toolkit.compiled]
    assert len(sources) == len(set(sources))
    assert KernelFolder(target.folder).intact() == {"page", "silu_and_mul"}


def test_memory_bounds_how_many_compilers_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, threads, expected in ((100, 8, 8), (5, 8, 3), (1, 8, 1), (100, 1, 1)):
        monkeypatch.setattr(compiler, "available_memory", lambda gb=available: gb * 10**9)
        assert compiler.jobs(threads) == expected


ALONE = """
import sys
from pathlib import Path
from engine.device.process_setup import leave_stopping
from engine.kernels.compiler import Target, compile_modules
from engine.kernels.needed import PAGE
leave_stopping()  # as an engine's process does
compile_modules([PAGE], Target(Path(sys.argv[1]), ("9.0a",)), 1, lambda *progress: None)
"""


def test_compilers_end_with_the_process_that_wants_them(toolkit: Toolkit, tmp_path: Path) -> None:
    """Killed, so that nothing of ours could tidy up."""
    note = tmp_path / "pid"
    toolkit.fail(f"echo $$ > {note}; exec sleep 600")
    command = [sys.executable, "-c", ALONE, str(tmp_path / "kernels")]
    environment = os.environ | toolkit.environment
    with subprocess.Popen(command, cwd=CHECKOUT, env=environment) as process:
        assert until(lambda: note.exists() and note.read_text().strip() != "", 60)
        compiling = int(note.read_text())
        assert alive(compiling)
        process.send_signal(signal.SIGKILL)
    assert until(lambda: not alive(compiling), 10)


def alive(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_real_compiler_makes_what_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.device.toolchain import missing_tools

    for name in ("CXX", "FLASHINFER_DISABLE_JIT"):
        monkeypatch.delenv(name, raising=False)
    if missing_tools(compiling=True) is not None:
        pytest.skip("nothing is there to compile with")
    import tvm_ffi

    target = Target(tmp_path / "kernels", ("9.0a",))
    compile_modules([gating("silu")], target, len(os.sched_getaffinity(0)), nothing)
    module = tvm_ffi.load_module(str(KernelFolder(target.folder).library("silu_and_mul")))
    assert module.silu_and_mul is not None
    shutil.rmtree(target.folder)


def test_modules_travel_as_json() -> None:
    for module in (NORM, gating("silu"), KernelModule("a", "b:c", ("torch.int32", 3, True))):
        assert KernelModule.of_json(module.as_json()) == module
