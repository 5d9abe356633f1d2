"""The kernels compiled with sanitizers: no byte beyond what is ours, nothing undefined."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine.native import build
from engine.native.build import NotBuilt
from tests.engine.native.conftest import emulation
from tests.engine.native.tampered import LIBRARY, copied, library_of, with_one_variant

CHECKOUT = Path(__file__).parents[3]
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O0")
# no fixtures but those of this folder: what others import takes longest
ALONE = ("-p", "no:cacheprovider", "--noconftest", "-p", "tests.engine.native.conftest")
NOUNS = (
    *("products", "quantized", "blocks", "attention", "step", "choice", "likeliest", "towers"),
    "resizing",
)
TESTS = tuple(f"tests/engine/native/test_{name}.py" for name in NOUNS)
SMALL = (  # sizes, and of the variants those whose code is not another's
    "not 1536 and not 608 and not 66-80 and not 66-960 and not long_context "
    "and not whatever_runs_beside and (not in_one_batch or 24-3] or 300-16]) "
    "and not avx512_bf16-float32 and not amx-float32 and not (test_attention and amx) "
    "and not (amx and 288-176) "
    "and not (steps_are and (amx or biases or heads or odd)) "  # plain C for amx takes its time
    "and not (test_blocks and (128 or avx512_bf16 or amx)) "
    "and not (test_choice and (1000 or 5003 or equals or amx or avx512_bf16)) "
    "and not (test_towers and not (layers_are and padded and not amx))"
)


@pytest.fixture(scope="module")
def runtime() -> str:
    """What must be loaded before Python; skips where the compiler has none."""
    try:
        command = [*build.compiler(), "-print-file-name=libasan.so"]
    except NotBuilt as error:
        pytest.skip(str(error))
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip("the compiler has no sanitizer of addresses to load beforehand")
    return found


def ran_with(library: Path, runtime: str, *selected: str) -> subprocess.CompletedProcess[str]:
    """The tests of this library in a process of their own."""
    environment = {
        "LD_PRELOAD": runtime,
        # Python's own leaks are many, and names take seconds to find
        "ASAN_OPTIONS": "detect_leaks=0:symbolize=0",
        "PYTHONMALLOC": "malloc",  # of small things too, so that their ends are seen
        LIBRARY: str(library),
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-s", *ALONE, *selected],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_kernels_stay_within_their_memory(runtime: str, tmp_path: Path) -> None:
    library = build.build(tmp_path, (*FLAGS, *emulation()))
    ran = ran_with(library, runtime, *TESTS, "-k", SMALL)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-6000:]
    assert " passed" in ran.stdout
    assert "runtime error" not in ran.stderr


OVERFLOW = "AddressSanitizer: heap-buffer-overflow"
PLANTED = (  # what leaves every result as it is
    (
        "stack.c",
        "for (int64_t n = 0; n < rows; n += BLOCK) {",
        "for (int64_t n = 0; n <= rows; n += BLOCK) {",
    ),
    (
        "quantized.c",
        "to < s->sums + last * s->groups;",
        "to <= s->sums + last * s->groups;",
    ),
    (
        "attention.c",
        "  walk->left--;\n  return found;",
        "  if (--walk->left == 0 && *walk->next < 0) return NULL;\n  return found;",
    ),
    ("kernels.h", "__attribute__((aligned(1), may_alias))", "__attribute__((may_alias))"),
    ("resize.c", "calloc(ROWS, (size_t)(bytes + SLACK))", "calloc(ROWS, (size_t)bytes)"),
)


@pytest.fixture(scope="module")
def planted(runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that goes beyond a weight, rows, the page table and pixels, and words anywhere."""
    folder = tmp_path_factory.mktemp("planted")
    sources = copied(folder, *PLANTED)
    with pytest.MonkeyPatch.context() as patch:
        with_one_variant(patch, sources)
        return library_of(patch, sources, folder, FLAGS)


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("products.py::test_weights_below_each_other_are_one", OVERFLOW),
        ("attention.py::test_a_span_that_is_cut_ends_with_the_keys_that_there_are", OVERFLOW),
        ("quantized.py::test_one_scale_that_is_another_is_seen", OVERFLOW),
        ("resizing.py::test_pictures_are_those_of_torch", OVERFLOW),
        ("products.py::test_a_weight_from_an_odd_place_is_read_as_it_is", "misaligned address"),
    ],
)
def test_the_sanitizers_find(planted: Path, runtime: str, test: str, said: str) -> None:
    ran = ran_with(planted, runtime, f"tests/engine/native/test_{test}")
    assert ran.returncode != 0
    assert said in ran.stderr
    if said == OVERFLOW:
        assert re.search(r"#[01] .*libappliance\.so", ran.stderr)  # in what is ours
