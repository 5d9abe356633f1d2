"""A folder of compiled kernels says what they are for, or is refused in one line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.bundle import fakes
from tools.bundle.errors import BundleError
from tools.bundle.kernels import read_kernels


def test_the_manifest_says_it(tmp_path: Path) -> None:
    folder = fakes.write_kernels(tmp_path / "k", torch="2.11.0+cu130", cuda="13.0.88", arch="90a")
    found = read_kernels(folder)
    assert (found.torch, found.cuda, found.arch) == ("2.11.0", "13.0", "9.0a")
    assert (found.flashinfer, found.machine, found.runtime) == ("0.7.2.post1", "x86_64", "13")
    assert list(found.modules) == ["norm", "page"]
    assert not found.linked_to_torch


def test_without_one_the_layout_of_flashinfers_cache_says_it(tmp_path: Path) -> None:
    folder = fakes.write_kernels(tmp_path / "flashinfer/0.7.2.post1/80_90a/cached_ops")
    (folder / "kernels.json").unlink()
    found = read_kernels(folder)
    assert (found.flashinfer, found.arch, found.torch) == ("0.7.2.post1", "8.0 9.0a", "")
    moved = folder.rename(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"no kernels\.json"):
        read_kernels(moved)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"arch": None}, "does not say arch"),
        ({"flashinfer": "", "modules": None}, "does not say flashinfer and modules"),
        ({"arch": "hopper"}, "names no architecture"),
        ({"modules": ["norm", "rope"]}, "lacks rope"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    tmp_path: Path, said: dict[str, object], told: str
) -> None:
    folder = fakes.write_kernels(tmp_path / "k", **said)
    with pytest.raises(BundleError, match=told):
        read_kernels(folder)


def test_a_manifest_may_hold_digests_and_a_list(tmp_path: Path) -> None:
    known = hashlib.sha256(fakes.library(more=b"norm")).hexdigest()
    said = {"arch": None, "architectures": ["8.0", "9.0a"], "modules": {"norm": {"sha256": known}}}
    folder = fakes.write_kernels(tmp_path / "k", **said)
    (folder / "kernels.json").rename(folder / "manifest.json")
    found = read_kernels(folder)
    assert (found.arch, list(found.modules)) == ("8.0 9.0a", ["norm"])
    (folder / "norm" / "norm.so").write_bytes(fakes.library(more=b"mron"))
    with pytest.raises(BundleError, match=r"norm\.so is damaged"):
        read_kernels(folder)


def test_only_what_is_listed_is_taken(tmp_path: Path) -> None:
    found = read_kernels(fakes.write_kernels(tmp_path / "k", modules=["norm"]))
    assert list(found.modules) == ["norm"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"text", "is no library"),
        (fakes.library(machine=183), "aarch64 and x86_64"),
        (fakes.library(runtime="12"), "12 and 13"),
    ],
)
def test_kernels_of_several_kinds_are_refused(tmp_path: Path, data: bytes, told: str) -> None:
    folder = fakes.write_kernels(tmp_path / "k")
    (folder / "page" / "page.so").write_bytes(data)
    with pytest.raises(BundleError, match=told):
        read_kernels(folder)


def test_an_empty_folder_is_told_what_fills_it(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="task=kernels"):
        read_kernels(tmp_path)
