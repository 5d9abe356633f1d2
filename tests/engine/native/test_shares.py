"""What a step's attention is shared out into, in C: within its memory, and each key once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from engine.native.build import SOURCES
from tests.engine.native.tampered import copied, program

TRIAL = Path(__file__).with_name("shares_trial.c")


def trial(folder: Path, batches: int, sources: Path = SOURCES) -> subprocess.CompletedProcess[str]:
    made = program(folder, [TRIAL, sources / "pool.c"], ("-O2",), sources)
    return subprocess.run(
        [str(made), "1", str(batches)], capture_output=True, text=True, check=False, timeout=60
    )


def test_shares_fit_their_memory_and_give_each_key_once(tmp_path: Path) -> None:
    ran = trial(tmp_path, 1000)
    assert ran.returncode == 0, ran.stderr


FAULTS = {
    "more shares": ("rows == 1 ? parts_of(batch->lengths[s]) + 1", "rows == 1 ? 1"),
    "more parts": ("if (rows == 1) parts += pieces;", "parts += rows == 1;"),
    "not given once": ("begin = length - seen_keys(batch, s, window)", "begin = 0"),
    "not joined": ("part += count;", "part += count + 1;"),
    "pages of another": ("(size_t)pages * sizeof", "(size_t)(pages - 1) * sizeof"),
    "more rows": ("limit < QUERY_ROWS / d->heads ? limit : QUERY_ROWS / d->heads", "QUERY_ROWS"),
    "of another token": ("(int32_t)count};\n      }", "(int32_t)count - 1};\n      }"),
}


@pytest.mark.parametrize("said", FAULTS)
def test_the_trial_finds(said: str, tmp_path: Path) -> None:
    before, after = FAULTS[said]
    ran = trial(tmp_path, 1000, copied(tmp_path, ("stack.c", before, after)))
    assert ran.returncode == 1
    assert said in ran.stderr
