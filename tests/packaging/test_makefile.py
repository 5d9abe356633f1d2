"""What `make serve` runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def runs(*arguments: str) -> str:
    """The last line of a dry run, blanks apart."""
    command = ["make", "--dry-run", "--no-print-directory", *arguments]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return " ".join(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("given", "served"),
    [
        ("", "recipe=demo"),
        ("ARGS=server.port=9000", "recipe=demo server.port=9000"),
        ("ARGS=task=plan model.max_len=9", "recipe=demo task=plan model.max_len=9"),
        ("ARGS=recipe=qwen2_vl server.port=9000", "recipe=qwen2_vl server.port=9000"),
        ("ARGS=--config-dir mine recipe=own", "--config-dir mine recipe=own"),
        ("ARGS=model.path=/folder", "model.path=/folder"),
        ("RECIPE=smollm2", "recipe=smollm2"),
    ],
)
def test_the_demo_is_kept_unless_another_is_named(given: str, served: str) -> None:
    assert runs("serve", *([given] if given else [])) == f".venv/bin/appliance {served}"


PIP = """#!/bin/sh
echo "$@" >> {log}
case "$*" in *index-url*) exit {code};; esac
"""


@pytest.mark.parametrize("reached", [True, False])
@pytest.mark.parametrize("index", [None, "https://cpu.test/whl", ""])
def test_torch_is_the_build_for_cpus_unless_that_cannot_be_had(
    tmp_path: Path, index: str | None, reached: bool
) -> None:
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    python, log = folder / "python", tmp_path / "log"
    python.write_text(PIP.format(log=log, code=0 if reached else 1))
    python.chmod(0o755)
    given = [] if index is None else [f"TORCH_INDEX={index}", "EXTRAS=cuda"]
    command = ["make", "install", f"BIN={folder}", *given]
    first = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    installs = [line for line in log.read_text().splitlines() if " install " in line]
    asked = "https://download.pytorch.org/whl/cpu" if index is None else index
    assert [asked in line and "--no-deps" in line for line in installs[:-1]] == [True] * bool(asked)
    assert installs[-1].endswith("--editable .[cuda]" if given else "--editable .")
    assert "index-url" not in installs[-1]
    assert "--quiet" not in installs[-1]  # a download of minutes shows how far it is
    assert first.stderr.count("cannot be reached") == int(bool(asked) and not reached)
    log.unlink()
    subprocess.run(command[:3], cwd=CHECKOUT, check=True)
    assert not log.exists()  # what was chosen stays
    subprocess.run([*command[:3], "TORCH_INDEX=https://other.test/"], cwd=CHECKOUT, check=True)
    again = log.read_text()
    assert "uninstall --quiet --yes torch" in again
    assert "https://other.test/" in again


def test_an_image_takes_what_is_given() -> None:
    given = ["RECIPE=qwen2_vl", "BASE=b:1.0", "TORCH_INDEX=", "EXTRAS=cuda"]
    command = ["make", "--dry-run", "image", *given]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    for part in ("RECIPE=qwen2_vl", 'BASE="b:1.0"', 'TORCH_INDEX=""', 'EXTRAS="cuda"'):
        assert f"--build-arg {part}" in done.stdout
    command = ["make", "--dry-run", "image"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.count("--build-arg") == 1


def test_a_bundle_is_made_of_the_kernels_that_are_named() -> None:
    given = ["KERNELS_FOLDER=a folder", "ARGS=--python 3.12"]
    told = '.venv/bin/python -m tools.bundle --kernels "a folder" --python 3.12'
    assert runs("bundle", *given) == told
    assert runs("bundle") == ".venv/bin/python -m tools.bundle"  # which says what is missing


def test_kernels_are_compiled_for_the_architecture_that_is_named() -> None:
    done = "-m tests.gpu.kernels --arch {} --folder build/kernels"
    assert done.format('"9.0a"') in runs("kernels")
    assert done.format('"8.0 8.9"') in runs("kernels", "KERNELS_ARCH=8.0 8.9")


def test_an_image_takes_kernels() -> None:
    command = [
        "make",
        "--dry-run",
        "image",
        "KERNELS_ARCH=9.0a",
        "KERNELS_WITH=engine.kv_dtype=fp8",
    ]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert (
        '--build-arg KERNELS_ARCH="9.0a" --build-arg KERNELS_WITH="engine.kv_dtype=fp8"'
        in done.stdout
    )
