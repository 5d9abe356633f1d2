"""A folder of compiled kernels says what they are for, or is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.kernels.versions import Versions
from tests.bundle import fakes
from tools.bundle.errors import BundleError
from tools.bundle.kernels import read_kernels


def test_the_manifest_says_it(tmp_path: Path) -> None:
    versions = Versions("0.7.2.post1", "2.11.0", "13.0.88")
    folder = fakes.write_kernels(tmp_path / "k", versions=versions, architectures=("8.0", "9.0a"))
    found = read_kernels(folder)
    assert (found.torch, found.cuda, found.arch) == ("2.11.0", "13.0", "8.0 9.0a")
    assert (found.flashinfer, found.machine, found.runtime) == ("0.7.2.post1", "x86_64", "13")
    assert list(found.modules) == ["norm", "page"]
    assert not found.linked_to_torch


def test_a_library_that_is_not_as_it_was_compiled_is_refused(tmp_path: Path) -> None:
    folder = fakes.write_kernels(tmp_path / "k")
    (folder / "norm" / "norm.so").write_bytes(fakes.library(more=b"mron"))
    with pytest.raises(BundleError, match=r"norm\.so is missing or damaged.*task=kernels"):
        read_kernels(folder)


def test_only_what_is_listed_is_taken(tmp_path: Path) -> None:
    folder = fakes.write_kernels(tmp_path / "k")
    (folder / "rope").mkdir()
    (folder / "rope" / "rope.so").write_bytes(fakes.library())
    assert list(read_kernels(folder).modules) == ["norm", "page"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"text", "is no library"),
        (fakes.library(machine=183), "aarch64 and x86_64"),
        (fakes.library(runtime="12"), "12 and 13"),
    ],
)
def test_kernels_of_several_kinds_are_refused(tmp_path: Path, data: bytes, told: str) -> None:
    folder = fakes.write_kernels(tmp_path / "k", {"norm": fakes.library(), "page": data})
    with pytest.raises(BundleError, match=told):
        read_kernels(folder)


def test_a_folder_that_task_kernels_did_not_make_is_told_what_does(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no compiled kernels.*task=kernels"):
        read_kernels(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(BundleError, match=r"is no manifest.*task=kernels"):
        read_kernels(tmp_path)
