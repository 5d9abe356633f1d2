"""An installed wheel in an empty folder behaves as the checkout does."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from appliance.weights.source import write_manifest
from tests.checkpoints import write_llama

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = ("appliance", "engine", "conf", "recipes", "pyproject.toml", "setup.py", "MANIFEST.in")
TEXTS = ("README.md", "LICENSE")
SEALED = "sealed"  # a folder of weights beside the recipes that only the wheel under test has


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as `python -m build` makes it: from the source distribution."""
    tree = tmp_path_factory.mktemp("tree")
    for name in (*SOURCES, *TEXTS):
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, tree / name)
    weights = write_llama(tree / "recipes" / SEALED)
    write_manifest(weights, "a test")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "out", "."]
    ran = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert len(list((tree / "out").glob("*.tar.gz"))) == 1
    return next((tree / "out").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `appliance` of a fresh environment that borrows dependencies, not code."""
    environment = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(command, check=True, timeout=120)
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin" / "appliance"


def run(
    command: list[str], folder: Path, python_path: str = ""
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": python_path}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["recipe=smollm2", "--cfg", "job"],
        ["recipe=qwen2_vl", "server=container", "logging=json", "--cfg", "job", "--resolve"],
        ["--help"],
        ["recipe=smolm2"],
        ["--version"],
    ],
    ids=" ".join,
)
def test_the_wheel_and_the_checkout_answer_alike(
    installed: Path, tmp_path: Path, argv: list[str]
) -> None:
    ours = run([sys.executable, "-m", "appliance", *argv], tmp_path, str(CHECKOUT))
    theirs = run([str(installed), *argv], tmp_path)
    assert theirs.stdout == ours.stdout
    assert theirs.stderr == ours.stderr
    assert theirs.returncode == ours.returncode
    assert list(tmp_path.iterdir()) == []


def test_the_installed_code_is_the_wheels(installed: Path, tmp_path: Path) -> None:
    ask = "import appliance, engine; print(appliance.__file__, *engine.__path__)"
    ran = run([str(installed.with_name("python")), "-c", ask], tmp_path)
    assert ran.stdout.count(str(installed.parent.parent)) == 2
    assert str(CHECKOUT / "appliance") not in ran.stdout


def test_the_wheel_holds_every_module_and_all_data(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    for package in ("appliance", "engine"):
        for file in (CHECKOUT / package).rglob("*.py"):
            assert str(file.relative_to(CHECKOUT)) in held
        assert f"{package}/py.typed" in held
    for folder in ("conf", "recipes"):
        for file in (CHECKOUT / folder).rglob("*"):
            if file.is_file():
                assert f"appliance/_data/{file.relative_to(CHECKOUT)}" in held


def test_weights_in_the_wheel_are_found_and_checked(installed: Path, tmp_path: Path) -> None:
    [site] = (installed.parent.parent / "lib").glob("python*/site-packages")
    folder = site / "appliance" / "_data" / "recipes" / SEALED
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    told = [f'model.path="recipe://{SEALED}#sha256={digest}"', "task=plan"]
    ran = run([str(installed), *told], tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"{SEALED}  (LlamaForCausalLM")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    ran = run([str(installed), *told], tmp_path)
    file.write_bytes(content)
    assert ran.returncode == 2
    assert f"SHA-256 of '{file}'" in ran.stderr
    assert hashlib.sha256(content).hexdigest() in ran.stderr
    ours = run([sys.executable, "-m", "appliance", *told], tmp_path, str(CHECKOUT))
    assert ours.returncode == 2  # the checkout has no such folder
    assert f"looked for '{CHECKOUT / 'recipes' / SEALED}'" in ours.stderr


def test_the_wheel_stays_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 20_000_000


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"appliance", "engine"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
