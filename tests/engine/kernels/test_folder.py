"""Compiled kernels on disk: what is kept, what counts, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from engine.kernels.folder import KernelFolder, KernelsUnfit, Manifest
from engine.kernels.versions import Versions, installed

HERE = Versions("0.7.2.post1", "2.13.0", "13.0")


def made(root: Path, **contents: str) -> dict[str, Path]:
    root.mkdir(exist_ok=True)
    files = {name: root / f"made-{name}.so" for name in contents}
    for name, file in files.items():
        file.write_text(contents[name])
    return files


@pytest.fixture
def folder(tmp_path: Path) -> KernelFolder:
    there = KernelFolder(tmp_path / "kernels")
    there.path.mkdir()
    there.keep(made(tmp_path / "made", page="P", norm="N"), HERE, ("9.0a",))
    return there


def test_what_is_kept_is_found_in_the_layout_of_flashinfer(folder: KernelFolder) -> None:
    assert folder.intact() == {"page", "norm"}
    assert (folder.path / "page" / "page.so").read_text() == "P"
    manifest = folder.manifest()
    assert manifest is not None
    assert str(manifest) == "sm 9.0a (FlashInfer 0.7.2.post1, torch 2.13.0, CUDA 13.0)"
    names = {file.name for file in folder.path.rglob("*") if file.is_file()}
    assert names == {"manifest.json", "page.so", "norm.so"}


def test_more_of_the_same_kind_is_added(folder: KernelFolder, tmp_path: Path) -> None:
    patched = Versions("0.7.2.post1", "2.13.1", "13.0")
    folder.keep(made(tmp_path / "made", rope="R", page="newer"), patched, ("9.0a",))
    assert folder.intact() == {"page", "norm", "rope"}
    assert folder.library("page").read_text() == "newer"


@pytest.mark.parametrize(
    ("versions", "architectures"),
    [
        (Versions("0.7.3", "2.13.0", "13.0"), ("9.0a",)),
        (Versions("0.7.2.post1", "2.14.0", "13.0"), ("9.0a",)),
        (Versions("0.7.2.post1", "2.13.0", "12.9"), ("9.0a",)),
        (HERE, ("8.0",)),
    ],
)
def test_another_kind_takes_the_place_of_what_was_there(
    folder: KernelFolder, tmp_path: Path, versions: Versions, architectures: tuple[str, ...]
) -> None:
    (folder.path / "notes.txt").write_text("somebody else's")
    folder.keep(made(tmp_path / "made", rope="R"), versions, architectures)
    assert folder.intact() == {"rope"}
    assert not folder.library("page").exists()
    assert (folder.path / "notes.txt").exists()


def test_a_library_that_has_changed_does_not_count(folder: KernelFolder) -> None:
    folder.library("page").write_text("Q")
    folder.library("norm").unlink()
    assert folder.intact() == frozenset()


def test_where_nothing_was_compiled_there_is_no_manifest(tmp_path: Path) -> None:
    assert KernelFolder(tmp_path / "none").manifest() is None
    assert KernelFolder(tmp_path / "none").intact() == frozenset()
    (tmp_path / "file").write_text("")
    assert KernelFolder(tmp_path / "file").manifest() is None


def changed(folder: KernelFolder, **changes: Any) -> str:
    content = json.loads((folder.path / "manifest.json").read_text())
    return json.dumps({**content, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["sm_90"]},
        {"architectures": 3},
        {"torch": None},
        {"torch": "2.13\nsecond line"},
        {"modules": {"../../etc/x": {"sha256": "", "bytes": 0}}},
        {"modules": {"page": {"sha256": ""}}},
        {"modules": ["page"]},
    ],
)
def test_a_manifest_that_nobody_wrote_is_refused(
    folder: KernelFolder, changes: dict[str, Any]
) -> None:
    (folder.path / "manifest.json").write_text(changed(folder, **changes))
    with pytest.raises(KernelsUnfit, match=r"manifest\.json is no manifest") as told:
        folder.manifest()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, "\udcff"])
def test_so_is_a_file_of_something_else(folder: KernelFolder, text: str) -> None:
    (folder.path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(KernelsUnfit):
        folder.manifest()


def test_a_device_is_not_read_for_ever(folder: KernelFolder) -> None:
    content = json.loads((folder.path / "manifest.json").read_text())
    content["modules"]["page"]["bytes"] = 0
    (folder.path / "manifest.json").write_text(json.dumps(content))
    folder.library("page").unlink()
    folder.library("page").symlink_to("/dev/zero")
    assert folder.intact() == {"norm"}
    os.replace(folder.path / "manifest.json", folder.path / "old.json")
    (folder.path / "manifest.json").symlink_to("/dev/zero")
    with pytest.raises(KernelsUnfit):
        folder.manifest()


@pytest.mark.parametrize(
    ("versions", "architectures", "runs"),
    [
        (HERE, ("9.0a",), True),
        (Versions("0.7.2.post1", "2.13.1", "13.2"), ("9.0a",), True),
        (Versions("0.7.2.post1", "2.13.0", ""), ("9.0a",), True),  # a torch without CUDA
        (HERE, ("8.9",), False),
        (HERE, ("9.0a", "8.9"), False),
        (Versions("0.7.2", "2.13.0", "13.0"), ("9.0a",), False),
        (Versions("0.7.2.post1", "2.11.0", "13.0"), ("9.0a",), False),
        (Versions("0.7.2.post1", "2.13.0", "12.9"), ("9.0a",), False),
    ],
)
def test_kernels_run_with_what_they_were_made_with(
    versions: Versions, architectures: tuple[str, ...], runs: bool
) -> None:
    assert Manifest(HERE, ("9.0a",)).runs(architectures, versions) == runs


def test_versions_are_those_that_python_imports() -> None:
    torch = pytest.importorskip("torch")
    there = installed()
    assert torch.__version__.startswith(there.torch)
    assert there.cuda == (torch.version.cuda or "")
    if there.flashinfer:
        assert pytest.importorskip("flashinfer").__version__ == there.flashinfer
