"""`install.sh` and `check.sh` of a bundle. Needs Python alone, and pip to install."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import machine
import parts

FOLDER = Path(__file__).resolve().parents[1]
HOME = FOLDER.parent / "unpacked"  # beside all folders, since each of them may go again


def main(argv: list[str]) -> int:
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    try:
        if argv[:1] == ["check"]:
            return check(manifest, argv[1:])
        return install(manifest, argv[1:])
    except (Refused, parts.Lacking) as refusal:
        print(f"bundle: {refusal}", file=sys.stderr)
    except OSError as error:
        print(f"bundle: {error.strerror or error}: {error.filename or HOME}", file=sys.stderr)
    return 2


class Refused(Exception):
    """One line about what keeps this bundle from this machine."""


def install(manifest: dict[str, Any], argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="install.sh", description="Install without a network.")
    parser.add_argument("--target", help="a folder for PYTHONPATH, not the environment")
    options = parser.parse_args(argv)
    here = machine.this_machine()
    refuse(machine.mismatch(manifest, here) or machine.unmet(manifest["beside"]))
    if not here.card:
        print("bundle: no card is seen here, so none was compared", file=sys.stderr)
    if importlib.util.find_spec("pip") is None:
        refuse(f"{sys.executable} has no pip: {sys.executable} -m ensurepip")
    kept = HOME / "parts"
    beside = sorted(one for one in FOLDER.parent.glob("*/") if one not in (FOLDER, HOME))
    found = parts.find(manifest, [FOLDER, *beside, kept])
    if lacking := parts.missing(manifest, found):
        keep(found, kept)
        refuse(
            f"missing: {lacking}. Bring it beside this folder and run install.sh again; what is "
            f"here is kept in '{kept}'"
        )
    start = time.monotonic()
    target = os.path.abspath(options.target) if options.target else ""
    put(manifest, list(found.values()), target)
    print(f"installed in {time.monotonic() - start:.0f} s, kernels for arch {manifest['arch']}")
    if manifest["left_out"]:
        print(f"left out when it was made: {', '.join(manifest['left_out'])}")
    if target:
        print(f"export PYTHONPATH={target}")
    print("export FLASHINFER_DISABLE_JIT=1")
    print("python3 -m appliance recipe=demo engine=cuda")
    return 0


def keep(found: dict[str, Path], folder: Path) -> None:
    """Hold parts until the others are there: the folder that they came in may go."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in found.items():
        if file.parent != folder:
            shutil.copyfile(file, folder / name)


def put(manifest: dict[str, Any], found: list[Path], target: str) -> None:
    """Unpack and install; nothing stays but what was installed and the benchmark."""
    fresh = HOME / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    files = parts.unpack(manifest, found, fresh)
    wheels = [str(file) for file in files if file.suffix == ".whl"]
    told = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # the same version may be there from another wheel, as FlashInfer without kernels
    told += ["--no-index", "--no-deps", "--no-cache-dir", "--compile", "--force-reinstall"]
    told += ["--target", target, "--upgrade"] if target else []
    if subprocess.run([*told, *wheels], check=False).returncode:
        raise Refused("pip could not install it; its words are above")
    shutil.rmtree(HOME / "bench", ignore_errors=True)
    with zipfile.ZipFile(fresh / "bench.zip") as packed:
        packed.extractall(HOME)
    link_recipes(target)
    (HOME / "installed.json").write_text(json.dumps({"target": target}))
    shutil.rmtree(fresh)
    shutil.rmtree(HOME / "parts", ignore_errors=True)


def link_recipes(target: str) -> None:
    """The benchmark reads the demo beside itself, as in a checkout."""
    ask = "import importlib.util; print(importlib.util.find_spec('appliance').origin)"
    told = [sys.executable, "-c", ask]
    environment = machine.environment(HOME, target)
    asked = subprocess.run(told, env=environment, capture_output=True, text=True, check=True)
    link = HOME / "recipes"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(asked.stdout.strip()).parent / "_data" / "recipes")


def check(manifest: dict[str, Any], argv: list[str]) -> int:
    noted = HOME / "installed.json"
    if not noted.exists():
        refuse("not installed yet: ./install.sh")
    target = json.loads(noted.read_text())["target"]
    if target:
        sys.path.insert(0, target)
    refuse(machine.mismatch(manifest, machine.this_machine()))
    told = [sys.executable, "-m", "bench.gpu", "--output", str(HOME / "results"), *argv]
    return subprocess.run(told, env=machine.environment(HOME, target), check=False).returncode


def refuse(why: str) -> None:
    if why:
        raise Refused(why)


sys.exit(main(sys.argv[1:]))
