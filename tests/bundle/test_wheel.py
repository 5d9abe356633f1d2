"""FlashInfer's wheel, smaller and with kernels: still a wheel."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from tests.bundle import fakes
from tools.bundle.wheel import trim, wanted

FILES = {
    "flashinfer/__init__.py": b"",
    "flashinfer/data/csrc/norm.cu": b"kept",
    "flashinfer/data/csrc/cake_fmha.cu": b"dropped",
    "flashinfer/data/csrc/fused_moe/x.cu": b"dropped",
    "flashinfer/data/include/flashinfer/norm.cuh": b"kept",
    "flashinfer/data/cutlass/include/x.h": b"dropped",
    "flashinfer/experimental/__init__.py": b"kept",
    "flashinfer/experimental/cake_nvfp4_per_token/a/b.py": b"kept",
    "flashinfer/experimental/other/x.py": b"dropped",
    "flashinfer/moe_ep/x.py": b"dropped",
}
NEEDS = [
    "torch",
    "Apache.TVM-ffi>=0.1; python_version > '3'",
    "nvidia-cutlass-dsl",
    "rich; extra == 'x'",
]


def faults(wheel: Path) -> list[str]:
    """Files whose digest or size is not the RECORD's, or that only one of them has."""
    with zipfile.ZipFile(wheel) as held:
        names = set(held.namelist())
        [record] = (one for one in names if one.endswith(".dist-info/RECORD"))
        rows = list(csv.reader(io.StringIO(held.read(record).decode())))
        wrong = sorted(names ^ {row[0] for row in rows})
        for name, digest, size in rows:
            if name == record or name not in names:
                continue
            data = held.read(name)
            made = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            if digest != f"sha256={made}" or int(size) != len(data):
                wrong.append(name)
    return wrong


@pytest.fixture
def trimmed(tmp_path: Path) -> Path:
    source = fakes.write_fake_wheel(tmp_path / "in", "flashinfer-python", "0.7.2", FILES, NEEDS)
    kernels = {}
    for name in ("norm", "page"):
        kernels[name] = tmp_path / f"{name}.so"
        kernels[name].write_bytes(fakes.library(more=name.encode()))
    target = tmp_path / source.name
    trim(source, target, kernels, {"torch", "apache-tvm-ffi"})
    return target


def test_what_is_dropped_is_what_no_kernel_of_ours_needs(trimmed: Path) -> None:
    with zipfile.ZipFile(trimmed) as held:
        names = set(held.namelist())
    assert {name for name in FILES if name in names} == {
        name for name, data in FILES.items() if data != b"dropped"
    }
    assert "flashinfer/data/aot/norm/norm.so" in names
    assert "flashinfer/data/aot/page/page.so" in names
    assert wanted("flashinfer/data/csrc/alphamoe_x.cu") is False


def test_its_record_is_true_and_a_changed_file_would_show(trimmed: Path) -> None:
    assert faults(trimmed) == []
    with zipfile.ZipFile(trimmed) as held:
        contents = {name: held.read(name) for name in held.namelist()}
    contents["flashinfer/data/csrc/norm.cu"] = b"other"
    contents["more.py"] = b""
    with zipfile.ZipFile(trimmed, "w") as held:
        for name, data in contents.items():
            held.writestr(name, data)
    assert faults(trimmed) == ["more.py", "flashinfer/data/csrc/norm.cu"]


def test_it_asks_for_nothing_that_is_not_there(trimmed: Path) -> None:
    with zipfile.ZipFile(trimmed) as held:
        metadata = held.read("flashinfer_python-0.7.2.dist-info/METADATA").decode()
    lines = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert lines == [f"Requires-Dist: {one}" for one in NEEDS[:2]]
    assert metadata.endswith("\n\nA text.\n")


def test_the_same_files_make_the_same_wheel(trimmed: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.whl"
    source = tmp_path / "in" / trimmed.name
    kernels = {name: tmp_path / f"{name}.so" for name in ("norm", "page")}
    trim(source, again, kernels, {"torch", "apache-tvm-ffi"})
    assert again.read_bytes() == trimmed.read_bytes()
