"""What a bundle does on the machine that it is brought to."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.bundle import fakes
from tests.bundle.conftest import FOLDER_MB, PART_MB, Bundle

SEVERAL = 3  # folders, of the tiny bundle


def lines(run: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in run.stderr.splitlines() if "no card is seen" not in line]


def test_no_folder_and_no_part_is_larger_than_it_may_be(bundle: Bundle) -> None:
    assert len(bundle.folders) >= SEVERAL
    for folder in bundle.folders:
        sizes = [one.stat().st_size for one in folder.rglob("*") if one.is_file()]
        assert sum(sizes) <= FOLDER_MB * 1e6
        assert {"install.sh", "check.sh", "manifest.json"} < {one.name for one in folder.iterdir()}
        assert all(one.stat().st_size <= PART_MB * 1e6 for one in folder.glob("part-*.zip"))


def test_it_installs_and_checks_without_a_network(bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "target"
    done = bundle.run("install.sh", "--target", str(target), folder=1)
    assert done.returncode == 0, done.stderr
    assert f"export PYTHONPATH={target}" in done.stdout
    assert "left out when it was made: sound" in done.stdout
    assert (target / "d").read_bytes() in {fakes.noise(95_000), fakes.noise(30_000)}
    so = target / "flashinfer/data/aot/norm/norm.so"
    assert so.read_bytes() == fakes.library(more=b"norm")
    assert list((target / "appliance/__pycache__").glob("*.pyc"))
    checked = bundle.run("check.sh", "--minutes", "3", folder=2)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith(f"bench {target}/flashinfer/__init__.py --output ")
    assert checked.stdout.endswith("--minutes 3\n")
    home = bundle.folders[0].parent / "unpacked"
    assert (home / "recipes" / "demo.yaml").read_text() == "a: 1\n"  # the benchmark reads it there
    assert {one.name for one in home.iterdir()} == {"bench", "recipes", "installed.json"}


def test_folders_may_come_one_after_another_in_any_order(bundle: Bundle, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    for folder in bundle.folders:
        shutil.move(folder, away)
    *first, last = reversed(bundle.folders)
    for folder in first:
        shutil.move(away / folder.name, folder)
        done = bundle.run("install.sh", "--target", "t", folder=bundle.folders.index(folder))
        [line] = lines(done)
        assert done.returncode == 2
        assert f"of {last.name}" in line
        assert f"of {folder.name}" not in line
        shutil.move(folder, away)
    shutil.move(away / last.name, last)
    done = bundle.run("install.sh", "--target", "t", folder=bundle.folders.index(last))
    assert done.returncode == 0, done.stderr
    assert (bundle.site / "t" / "large.py").exists()


def test_a_part_that_is_missing_is_named(bundle: Bundle) -> None:
    part = bundle.part(3)
    part.unlink()
    done = bundle.run("install.sh", "--target", "t")
    [line] = lines(done)
    assert done.returncode == 2
    assert line.startswith(f"bundle: missing: part-3.zip of {part.parent.name}. ")
    assert not (bundle.site / "t").exists()


@pytest.mark.parametrize("fault", ["turned", "cut off"])
def test_a_part_that_is_damaged_is_named(bundle: Bundle, fault: str) -> None:
    part = bundle.part(2)
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data if fault == "turned" else data[:-1])
    done = bundle.run("install.sh", "--target", "t")
    [line] = lines(done)
    assert done.returncode == 2
    assert line.startswith(f"bundle: damaged, or of another bundle: '{part}' (")
    assert "part-1.zip" not in line
    assert not (bundle.site / "t").exists()


def test_a_whole_copy_beside_a_damaged_one_is_taken(bundle: Bundle) -> None:
    spare = bundle.folders[0].parent / "spare"
    spare.mkdir()
    part = bundle.part(2)
    shutil.copy(part, spare)
    part.write_bytes(b"")
    assert bundle.run("install.sh", "--target", "t").returncode == 0


def test_parts_unpack_by_any_unzip_in_any_order(bundle: Bundle, tmp_path: Path) -> None:
    into = tmp_path / "by-hand"
    found = sorted(one for folder in bundle.folders for one in folder.glob("part-*.zip"))
    for part in reversed(found):
        with zipfile.ZipFile(part) as packed:
            packed.extractall(into)
    pieces = sorted(into.glob("large-*.whl.*-of-*"))
    assert len(pieces) == 3
    (into / "large.whl").write_bytes(b"".join(one.read_bytes() for one in pieces))
    with zipfile.ZipFile(into / "large.whl") as whole:
        assert whole.testzip() is None
        assert whole.read("d") == fakes.noise(95_000)


@pytest.mark.parametrize(
    ("version", "cuda", "told"),
    [
        ("2.12.0", "13.0", "made for torch 2.11.0, but here is torch 2.12.0: make bundle "),
        ("2.11.0", "12.8", "made for CUDA 13.0, but here is CUDA 12.8: appliance recipe=NAME "),
        ("2.11.0+cpu", "", "made for torch 2.11.0 with CUDA 13.0, but here is torch 2.11.0+cpu "),
    ],
)
def test_another_torch_is_refused_before_anything_is_unpacked(
    bundle: Bundle, version: str, cuda: str, told: str
) -> None:
    shutil.rmtree(bundle.site)
    fakes.write_torch(bundle.site, version, cuda)
    done = bundle.run("install.sh", "--target", "t")
    [line] = lines(done)
    assert done.returncode == 2
    assert line.startswith(f"bundle: {told}")
    assert not (bundle.folders[0].parent / "unpacked").exists()


def test_what_came_after_the_installation_is_refused_by_the_check(bundle: Bundle) -> None:
    unready = bundle.run("check.sh")
    assert (unready.returncode, lines(unready)) == (2, ["bundle: not installed yet: ./install.sh"])
    assert bundle.run("install.sh", "--target", "t").returncode == 0
    shutil.rmtree(bundle.site / "torch")
    shutil.rmtree(bundle.site / "torch-2.11.0+cu130.dist-info")
    fakes.write_torch(bundle.site, "2.13.0")
    done = bundle.run("check.sh")
    [line] = lines(done)
    assert done.returncode == 2
    assert "here is torch 2.13.0" in line


def test_another_flashinfer_is_refused_and_its_own_is_not(bundle: Bundle, tmp_path: Path) -> None:
    info = bundle.site / "flashinfer_python-0.7.2.post1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: flashinfer-python\nVersion: 0.7.2.post1\n")
    assert bundle.run("install.sh", "--target", "t").returncode == 0
    (info / "METADATA").write_text("Name: flashinfer-python\nVersion: 0.7.3\n")
    [line] = lines(bundle.run("install.sh", "--target", "t"))
    assert "made for FlashInfer 0.7.2.post1, but here is FlashInfer 0.7.3: " in line
    assert "(with flashinfer-python==0.7.3), then make bundle KERNELS_FOLDER=FOLDER" in line


def test_packages_that_the_machine_should_have_are_named(bundle: Bundle) -> None:
    for folder in bundle.folders:
        file = folder / "manifest.json"
        manifest = json.loads(file.read_text())
        manifest["beside"] = {"torch": ">=2.11", "no-such-thing": ">=1"}
        file.write_text(json.dumps(manifest))
    [line] = lines(bundle.run("install.sh", "--target", "t"))
    assert "no-such-thing is missing" in line
    assert "pip list --format=freeze > has.txt" in line


def test_into_the_environment_whose_python_it_is(bundle: Bundle, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    [site] = (environment / "lib").glob("python*/site-packages")
    found = importlib.util.find_spec("pip")
    assert found is not None
    assert found.origin is not None
    (site / "pip").symlink_to(Path(found.origin).parent)
    stale = fakes.write_fake_wheel(tmp_path, "flashinfer-python", "0.7.2.post1")
    with zipfile.ZipFile(stale) as whole:
        whole.extractall(site)  # of the same version, and without kernels
    bundle.python = str(environment / "bin" / "python")
    done = bundle.run("install.sh")
    assert done.returncode == 0, done.stderr
    assert (site / "flashinfer/data/aot/page/page.so").exists()
    assert "PYTHONPATH" not in done.stdout
    assert f"bench {site}/flashinfer" in bundle.run("check.sh").stdout
