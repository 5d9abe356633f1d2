"""The library as Python loads it: the same structs on both sides, and what cannot be used."""

from __future__ import annotations

import _ctypes
import ctypes
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.native import choice, loading
from engine.native.build import SOURCES
from engine.native.choice import NativeUnusable, chosen
from engine.native.library import ACTIVATIONS, BLOCK, ELEMENTS, PANEL, Machine, address
from engine.native.loading import LibraryUnusable, library, variants
from tests.engine.native.conftest import emulation
from tests.engine.native.tampered import copied, library_of, program, with_one_variant

CPUINFO = Path("/proc/cpuinfo")
ADVICE = "build it by `python -m engine.native.build`"
STRUCTS = {
    "product": loading.Product,
    "norm": loading.Norm,
    "layer": loading.Layer,
    "stack": loading.Stack,
    "batch": loading.Batch,
    "step": loading.Step,
}
CONSTANTS = {
    "APPLIANCE_VERSION": loading.VERSION,
    "BLOCK": BLOCK,
    "PANEL": PANEL,
    "MOST_PARTS": loading.MOST_PARTS,
    "BFLOAT16": ELEMENTS[torch.bfloat16],
    "FLOAT32": ELEMENTS[torch.float32],
    "SILU": ACTIVATIONS["silu"],
    "GELU_TANH": ACTIVATIONS["gelu_tanh"],
    **{part.upper(): index for index, part in enumerate(loading.PARTS)},
}


def test_structs_and_numbers_are_the_same_on_both_sides(tmp_path: Path) -> None:
    """As the compiler lays them out: sizes, places and sizes of fields, and their order."""
    expected, lines = [], []
    for name, struct in STRUCTS.items():
        expected.append(f"{name} {ctypes.sizeof(struct)}")
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        for field, *_ in struct._fields_:
            python, c = getattr(struct, field), field.rstrip("_")
            expected.append(f"{name}.{c} {python.offset} {python.size}")
            lines.append(
                f'printf("{name}.{c} %zu %zu\\n", offsetof(struct {name}, {c}), '
                f"sizeof(((struct {name} *)0)->{c}));"
            )
    for name, value in CONSTANTS.items():
        expected.append(f"{name} {value}")
        lines.append(f'printf("{name} %d\\n", (int){name});')
    (tmp_path / "layout.c").write_text(
        '#include <stdio.h>\n#include "stack.c"\n'
        "const struct kernels *kernels_of(const char *variant, int element) {\n"
        "  (void)variant, (void)element;\n  return NULL;\n}\n"
        "int main(void) {\n  " + "\n  ".join(lines) + "\n  return 0;\n}\n"
    )
    made = program(tmp_path, [tmp_path / "layout.c", SOURCES / "pool.c"], ())
    ran = subprocess.run([str(made)], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == expected


def test_every_function_that_python_calls_is_in_the_library(built: Path) -> None:
    loaded = ctypes.CDLL(str(built))
    for name in loading.FUNCTIONS:
        assert hasattr(loaded, name)
    assert not hasattr(loaded, "pool_run")  # what is ours alone cannot be mistaken for another's


def test_a_library_of_another_version_is_refused_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = loading.VERSION + 41
    sources = copied(
        tmp_path,
        (
            "interface.h",
            f"#define APPLIANCE_VERSION {loading.VERSION} ",
            f"#define APPLIANCE_VERSION {other} ",
        ),
    )
    with_one_variant(monkeypatch, sources)
    file = library_of(monkeypatch, sources, tmp_path / "other")
    said = f"libappliance.so is of version {other} of its interface, and this is {loading.VERSION}"
    with pytest.raises(LibraryUnusable, match=said) as refused:
        library(file)
    assert one_line(refused).endswith(ADVICE)
    for use in (lambda: variants(file=file), lambda: Machine("avx2", 1, file)):
        with pytest.raises(LibraryUnusable, match=said):
            use()


def test_a_missing_library_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(LibraryUnusable, match="was not built when this was installed") as refused:
        library(tmp_path / "libappliance.so")
    assert one_line(refused).endswith(ADVICE)


@pytest.mark.parametrize("damage", ["text", "empty", "another", "half", "a folder"])
def test_a_damaged_library_says_how_to_build_it(damage: str, built: Path, tmp_path: Path) -> None:
    """In a process of its own: a loader might not come back from one."""
    file = tmp_path / "libappliance.so"
    if damage == "a folder":
        file.mkdir()
    elif damage == "another":
        shutil.copyfile(_ctypes.__file__, file)
    else:
        whole = built.read_bytes()
        file.write_bytes({"text": b"#!/bin/sh\n", "empty": b"", "half": whole[:4096]}[damage])
    script = (
        "import sys; from pathlib import Path\n"
        "from engine.native.loading import LibraryUnusable, library\n"
        "try: library(Path(sys.argv[1]))\n"
        "except LibraryUnusable as error: print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"libappliance.so cannot be loaded: {ADVICE}\n"


def one_line(refused: pytest.ExceptionInfo[Exception]) -> str:
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_a_variant_that_is_not_there_is_refused_with_those_that_are(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, everywhere = variants(file=built), variants(everywhere=True, file=built)
    assert set(here) <= set(everywhere)
    monkeypatch.setattr(choice, "variants", lambda: here)
    for name in ["vax", *(set(everywhere) - set(here))]:
        with pytest.raises(NativeUnusable) as refused:
            chosen(name)
        said = f"engine.native={name}: this processor has {', '.join(here)}, or set it to "
        assert one_line(refused).startswith(said)
        with pytest.raises(LibraryUnusable, match=f"{name} does not run here"):
            Machine(name, 1, built)
    assert [chosen(name) for name in here] == here
    assert chosen("auto") == here[0]
    monkeypatch.setattr(choice, "variants", lambda: here[1:])  # a processor that has fewer
    with pytest.raises(NativeUnusable, match=f"engine.native={here[0]}: this processor has"):
        chosen(here[0])
    monkeypatch.setattr(choice, "variants", list)
    for name in ("auto", here[0]):
        with pytest.raises(NativeUnusable, match="this processor has none, or set it to"):
            chosen(name)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="others have but one variant")
def test_variants_are_those_that_the_system_says_the_processor_has(built: Path) -> None:
    flags = set(re.search(r"^flags\s*:(.*)$", CPUINFO.read_text(), re.M)[1].split())
    needed = {
        "avx2": {"avx2", "fma"},
        "avx512": {"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq"},
    }
    needed["avx512_bf16"] = needed["avx512"] | {"avx512_bf16"}
    needed["amx"] = needed["avx512_bf16"] | ({"amx_tile", "amx_bf16"} if not emulation() else set())
    there = variants(everywhere=True, file=built)
    assert variants(file=built) == [name for name in there if needed[name] <= flags]


@pytest.mark.parametrize("threads", [0, -1])
def test_a_machine_without_threads_is_refused(built: Path, threads: int) -> None:
    with pytest.raises(LibraryUnusable, match="does not run here"):
        Machine(variants(file=built)[0], threads, built)


def test_an_address_is_of_what_was_asked_for() -> None:
    tensor = torch.zeros(4, 6)
    assert address(tensor, torch.float32, 4, 6) == tensor.data_ptr()
    assert address(tensor[1:3], torch.float32, 2, 6) == tensor.data_ptr() + 24
    for wrong in (
        (tensor, torch.float32, 6, 4),
        (tensor, torch.float32, 24),
        (tensor, torch.float32, 4, 6, 1),
        (tensor, torch.float32),
        (tensor, torch.bfloat16, 4, 6),
        (tensor, torch.int32, 4, 6),
        (tensor.T, torch.float32, 6, 4),
        (tensor[:, :3], torch.float32, 4, 3),
        (tensor[::2], torch.float32, 2, 6),
        (tensor[:1].expand(4, 6), torch.float32, 4, 6),
        (torch.zeros(4, 6, device="meta"), torch.float32, 4, 6),
    ):
        with pytest.raises(ValueError, match=r"in place of \[.*\] of torch.*, without gaps"):
            address(*wrong)
