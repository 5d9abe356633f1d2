"""What is carried is what pip says is missing there: tried on an index that is a folder."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tests.bundle import fakes
from tests.conftest import CHECKOUT
from tools.bundle.errors import BundleError
from tools.bundle.index import Index
from tools.bundle.packages import (
    allowed,
    declared,
    digests,
    find_missing,
    listed,
    pins,
    without,
)
from tools.bundle.target import Target

# builds without an index: no requirements of its own
BACKEND = """
import pathlib, zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    info, name = "{0}-1.0.dist-info/", "{0}-1.0-{1}.whl"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as made:
        made.writestr("{0}.py", "")
        made.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: {0}\\nVersion: 1.0\\n")
        made.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: {1}\\n")
        made.writestr(info + "RECORD", "")
    return name
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
THERE = ["torch==2.11.0", "transformers==5.17.0"]
LOCK = {"web": "1.0", "sums": "1.0", "sourced": "1.0"}


def write_source(folder: Path, name: str, tag: str) -> None:
    """A source distribution, of a package that has no wheel."""
    texts = {
        "pyproject.toml": PROJECT,
        "backend.py": BACKEND.format(name, tag),
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
    }
    with tarfile.open(folder / f"{name}-1.0.tar.gz", "w:gz") as made:
        for file, text in texts.items():
            entry = tarfile.TarInfo(f"{name}-1.0/{file}")
            entry.size = len(text)
            made.addfile(entry, io.BytesIO(text.encode()))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    folder, built = tmp_path / "index", tmp_path / "built"
    built.mkdir()
    write = fakes.write_fake_wheel
    write(folder, "torch", "2.11.0", requires=["sums>=1", "sympy"])
    write(folder, "transformers", "5.17.0", requires=["sums"])
    write(folder, "sympy", "1.0")
    for version in ("1.0", "1.1"):
        write(folder, "sums", version)
    for version in ("1.0", "1.1"):
        write(
            folder, "web", version, requires=["sums<2", "sourced", "typed; python_version<'3.12'"]
        )
    write(folder, "typed", "1.0")
    write(folder, "newer", "1.0", python=">=3.10")
    write(
        folder, "newer", "1.1", python=">=3.13"
    )  # than what is there, maybe not than what is here
    write_source(folder, "sourced", "py3-none-any")
    return Index(Target("3.12", "x86_64"), built)


def test_what_torch_and_transformers_bring_is_not_carried(index: Index, tmp_path: Path) -> None:
    missing = find_missing(index, ["web", "sums>=1", "newer"], THERE, LOCK)
    assert {name: one.version for name, one in missing.packages.items()} == {
        "web": "1.0",  # the lock's, not the newest
        "sourced": "1.0",  # made here, since it has no wheel
        "newer": "1.0",  # 1.1 is not for that Python
    }
    assert missing.locked
    assert missing.beside["sums"] == "<2,>=1"
    assert "sympy" not in missing.beside  # nobody of ours asks for it
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    index.download(missing.packages.values(), {}, fetched)
    assert {one.name.split("-")[0] for one in fetched.iterdir()} == {"web", "sourced", "newer"}


def test_a_file_whose_digest_the_lock_does_not_know_is_refused(
    index: Index, tmp_path: Path
) -> None:
    missing = find_missing(index, ["web"], THERE, LOCK)
    with pytest.raises(BundleError, match=r"pip download failed: .*HASHES"):
        index.download(missing.packages.values(), {"web==1.0": ["0" * 64]}, tmp_path)


def test_requirements_of_the_other_python_are_found(index: Index) -> None:
    other = Index(Target("3.11", "x86_64"), index.built)
    assert "typed" in find_missing(other, ["web"], THERE, LOCK).packages
    assert "typed" not in find_missing(index, ["web"], THERE, LOCK).packages


def test_the_machines_own_list_is_held_to_even_against_the_lock(
    index: Index, tmp_path: Path
) -> None:
    fakes.write_fake_wheel(tmp_path / "index", "web", "1.2", requires=["sums<3"])
    fakes.write_fake_wheel(tmp_path / "index", "sums", "2.0")
    has = {"torch": "2.11.0", "transformers": "5.17.0", "sums": "2.0", "sympy": "1.0"}
    missing = find_missing(index, ["web"], has, LOCK)
    assert missing.packages["web"].version == "1.2"
    assert not missing.locked
    with pytest.raises(BundleError, match="web"):
        find_missing(index, ["web<1.2"], has, LOCK)


def test_a_source_that_is_compiled_is_not_taken_from_here(index: Index, tmp_path: Path) -> None:
    (tmp_path / "index" / "sourced-1.0.tar.gz").unlink()
    write_source(tmp_path / "index", "sourced", "cp312-cp312-linux_x86_64")
    with pytest.raises(BundleError, match="no versions that go together"):
        find_missing(index, ["web"], THERE, LOCK)
    assert not list(index.built.iterdir())


def test_what_is_needed_is_what_the_project_declares() -> None:
    wanted = declared(CHECKOUT)
    assert {"apache-tvm-ffi>=0.1.11", "accelerate>=1.6"} < set(wanted)
    assert any(one.startswith("hydra-core") for one in wanted)
    assert not any(one.startswith("flashinfer") for one in wanted)
    assert allowed(CHECKOUT).name == "flashinfer-python"


def test_only_what_is_asked_for_can_be_left_out() -> None:
    assert without(["librosa>=0.11", "av>=17"], ["Librosa"]) == ["av>=17"]
    with pytest.raises(BundleError, match=r"numba cannot be left out: .*av, librosa"):
        without(["librosa>=0.11", "av>=17"], ["numba"])


def test_the_lock_and_its_digests_are_read() -> None:
    lock = pins((CHECKOUT / "requirements.lock").read_text())
    known = digests((CHECKOUT / "requirements.hashes").read_text())
    assert known
    for pin, found in known.items():
        name, _, version = pin.partition("==")
        assert lock[name] == version
        assert found


def test_a_list_without_versions_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "has.txt"
    file.write_text("torch==2.11.0+cu130\nTransformers==5.17.0\n")
    assert listed(file) == {"torch": "2.11.0", "transformers": "5.17.0"}
    file.write_text("torch==2.11.0\n")
    with pytest.raises(BundleError, match="no transformers"):
        listed(file)
    file.write_text("torch @ file:///x.whl\n")
    with pytest.raises(BundleError, match="format=freeze"):
        listed(file)
