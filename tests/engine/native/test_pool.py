"""The pool of threads in C, tried by a program of its own, fast and with a sanitizer."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.native.build import SOURCES
from tests.engine.native.tampered import copied, program

TRIAL = Path(__file__).with_name("pool_trial.c")
THREADS = ("-fsanitize=thread", "-O1")

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="sleepers wait on a futex")


def trial(folder: Path, flags: Sequence[str], sources: Path = SOURCES) -> Path:
    return program(folder, [TRIAL, sources / "pool.c"], flags, sources)


def run(made: Path, *words: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(made), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env={"TSAN_OPTIONS": "halt_on_error=1"},
    )


def holds(made: Path, *words: object) -> None:
    ran = run(made, *words)
    assert ran.returncode == 0, f"{words}: {ran.stderr}"


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trial(tmp_path_factory.mktemp("pool"), ("-O3",))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a sanitizer of threads, where the compiler has it and the system lets it run."""
    folder = tmp_path_factory.mktemp("pool")
    (folder / "nothing.c").write_text("int main(void) { return 0; }\n")
    try:
        nothing = program(folder, [folder / "nothing.c"], THREADS)
    except AssertionError:
        pytest.skip("the compiler has no sanitizer of threads")
    if run(nothing).returncode:
        pytest.skip("the sanitizer of threads does not run here")
    return trial(folder, THREADS)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_each_piece_runs_once_and_phases_in_order(fast: Path, threads: int) -> None:
    holds(fast, "any", threads, 20, 200, threads)


def test_nothing_is_unordered_between_threads(watched: Path) -> None:
    for seed, threads in ((1, 8), (2, 2), (3, 5)):
        holds(watched, "any", seed, 10, 60, threads)


def test_threads_that_sleep_are_woken(fast: Path, watched: Path) -> None:
    for threads in (2, 8):
        holds(fast, "wake", 300, threads, 20)
    holds(watched, "wake", 60, 8, 20)


@pytest.mark.parametrize("phases", [1, 4095, 4096, 4097, 10_000])
def test_a_run_may_have_any_number_of_phases(fast: Path, phases: int) -> None:
    holds(fast, "long", phases, 3)


def test_a_phase_may_have_any_number_of_pieces(fast: Path, tmp_path: Path) -> None:
    for threads in (1, 3):
        holds(fast, "many", 1 << 20, threads)
    width = ("pool.c", "return (uint32_t)done;", "return done & 0xfffff;")
    narrow = trial(tmp_path, ("-O3",), copied(tmp_path, width))
    holds(narrow, "many", (1 << 20) - 2, 3)
    with pytest.raises(subprocess.TimeoutExpired):  # where a count has 20 bits, no end is seen
        run(narrow, "many", 1 << 20, 3, timeout=2)


BEHIND = "if (pieces_in(atomic_fetch_add(&counter->done, 1)) + 1 == pieces && "
HELD_UP = BEHIND.replace("if (", "int last = ").replace(" && ", "; usleep(500); if (last && ")


def test_who_is_late_behind_the_last_piece_holds_nobody_up(tmp_path: Path) -> None:
    """The next run may be over by then, and there may be no other."""
    made = trial(tmp_path, ("-O3",), copied(tmp_path, ("pool.c", BEHIND, HELD_UP)))
    holds(made, "late", 80, 4)
    holds(made, "any", 1, 6, 6, 6)
    never = HELD_UP.replace("== pieces", "== counter->pieces + 1")
    (tmp_path / "hung").mkdir()
    sources = copied(tmp_path / "hung", ("pool.c", BEHIND, never))
    with pytest.raises(subprocess.TimeoutExpired):  # who waits for it is not woken
        run(trial(tmp_path / "hung", ("-O3",), sources), "late", 80, 4, timeout=2)


def test_threads_that_dawdle_at_every_step_lose_nothing(tmp_path: Path) -> None:
    made = trial(tmp_path, ("-O2", f"-include{TRIAL.with_name('dawdle.h')}"))
    for seed in range(3):
        holds(made, "any", seed, 10, 10, 6)
    holds(made, "late", 80, 4)
    holds(made, "wake", 50, 6, 20)


FAULTS = {
    "phases that do not wait for each other": (
        "|| pieces_in(done) >=",
        "|| pieces_in(done) + 1000 >=",
        "before the end",
    ),
    "sleepers that nobody wakes": ("if (atomic_load(&pool->sleeping) > 0)", "if (0)", "not come"),
    "a piece that runs again": (
        "      counter->work(counter->context, piece, worker->scratch);",
        "      for (int i = 0; i <= (piece == 5); i++) "
        "counter->work(counter->context, piece, worker->scratch);",
        "just once",
    ),
    "one memory for all": (
        "work(counter->context, piece, worker->scratch)",
        "work(counter->context, piece, worker == NULL ? NULL : pool->workers[0].scratch)",
        "another thread's",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_trial_finds(fault: str, tmp_path: Path) -> None:
    before, after, said = FAULTS[fault]
    sources = copied(tmp_path, ("pool.c", before, after))
    made = trial(tmp_path, ("-O3",), sources)
    words = ("wake", 20, 4, 1) if "wakes" in fault else ("any", 1, 12, 60, 8)
    ran = run(made, *words)
    assert ran.returncode != 0
    assert said in ran.stderr


def test_the_sanitizer_finds_results_that_are_not_handed_over(
    watched: Path, tmp_path: Path
) -> None:
    """On most machines nothing else would: their stores are in order anyway."""
    sources = copied(
        tmp_path,
        (
            "pool.c",
            "atomic_fetch_add(&counter->done, 1)",
            "atomic_fetch_add_explicit(&counter->done, 1, memory_order_relaxed)",
        ),
    )
    ran = run(trial(tmp_path, THREADS, sources), "any", 1, 8, 20, 8)
    assert "data race" in ran.stderr
