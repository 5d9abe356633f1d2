"""`make bundle KERNELS_FOLDER=FOLDER`: all that a card machine without a package index lacks.

Writes OUT/bundle-1, OUT/bundle-2, … each with install.sh and check.sh, for a machine that has torch
with CUDA and transformers. What the kernels are for, the bundle is for; it needs an index here.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from tools.bundle import packages, parts
from tools.bundle.errors import BundleError
from tools.bundle.index import PIP, Index
from tools.bundle.kernels import COMMAND, Kernels, read_kernels
from tools.bundle.target import GLIBC, Target, running_python
from tools.bundle.wheel import trim

CHECKOUT = Path(__file__).resolve().parents[2]
CARRIED = Path(__file__).with_name("carried")
RESERVED = 200_000  # bytes of a folder for scripts and the manifest
RUNTIME = re.compile(r"nvidia-cuda-runtime(-cu\d+)?$")


@dataclass(slots=True, frozen=True)
class Made:
    """What a bundle is for, as its manifest says it to the machine."""

    kernels: Kernels
    target: Target
    torch: str
    cuda: str
    missing: packages.Missing
    left_out: tuple[str, ...]

    def manifest(self, files: Sequence[Path], folders: list[list[parts.Part]]) -> dict[str, object]:
        pieces: dict[str, int] = {}
        for piece in (piece for made in folders for part in made for piece in part.pieces):
            pieces[piece.file.name] = pieces.get(piece.file.name, 0) + 1
        return {
            "python": self.target.python,
            "machine": self.target.machine,
            "glibc": f"2.{GLIBC}",
            "torch": self.torch,
            "cuda": self.cuda,
            "flashinfer": self.kernels.flashinfer,
            "arch": self.kernels.arch,
            "modules": sorted(self.kernels.modules),
            "beside": self.missing.beside,
            "left_out": self.left_out,
            "files": [
                {
                    "name": file.name,
                    "bytes": file.stat().st_size,
                    "sha256": parts.digest(file),
                    "pieces": pieces[file.name],
                }
                for file in files
            ],
        }


def make(options: argparse.Namespace, work: Path) -> tuple[Made, list[Path]]:
    """What the bundle is for, and its files."""
    if options.kernels is None:
        raise BundleError(f"KERNELS_FOLDER=FOLDER is needed, compiled ones: `{COMMAND}` makes them")
    kernels = read_kernels(options.kernels)
    if Version(kernels.flashinfer) not in packages.allowed(CHECKOUT).specifier:
        raise BundleError(
            f"the kernels are FlashInfer {kernels.flashinfer}'s, and the appliance runs with "
            f"{packages.allowed(CHECKOUT)}: `{COMMAND}` beside that one makes others"
        )
    target = Target(options.python, kernels.machine)
    for name in ("built", "fetched", "flashinfer", "wheels"):
        (work / name).mkdir()
    index = Index(target, work / "built")
    lock = packages.pins((CHECKOUT / "requirements.lock").read_text())
    there = packages.listed(options.has) if options.has else None
    torch = torch_there(options, kernels, there)
    transformers = options.transformers or lock["transformers"]
    say("asking pip what is missing")
    wanted = packages.without(packages.declared(CHECKOUT), options.without)
    missing = packages.find_missing(
        index, wanted, there or [f"torch=={torch}", f"transformers=={transformers}"], lock
    )
    if not missing.locked:
        say("with what is there, the versions of requirements.lock do not go: others are taken")
    cuda = cuda_there(kernels, missing.there)
    say(f"fetching {len(missing.packages)} packages")
    known = packages.digests((CHECKOUT / "requirements.hashes").read_text())
    index.download(missing.packages.values(), known, work / "fetched")
    say("making our wheel, and FlashInfer's")
    ours = wheel_of(CHECKOUT, work)
    source = options.flashinfer_wheel or index.fetch(
        f"{packages.FLASHINFER}=={kernels.flashinfer}", work / "flashinfer"
    )
    trimmed = work / "wheels" / source.name
    have = {*missing.there, *missing.packages}
    trim(source, trimmed, kernels.modules, have)
    bench = benchmark(work / "bench.zip")
    fetched = sorted((work / "fetched").iterdir(), key=lambda file: (-size(file), file.name))
    made = Made(kernels, target, torch, cuda, missing, tuple(options.without))
    return made, [bench, trimmed, ours, *fetched]


def torch_there(options: argparse.Namespace, kernels: Kernels, there: dict[str, str] | None) -> str:
    """The machine's torch: as its own list says, as told, or as the kernels were made beside.

    Raises BundleError if nothing says it, or kernels that are linked to torch were made by another.
    """
    torch = (there or {}).get("torch") or options.torch or kernels.torch
    torch = torch.partition("+")[0]
    if not torch:
        raise BundleError("nothing says which torch is there: --torch 2.11.0, or --has FILE")
    if kernels.linked_to_torch and kernels.torch != torch:
        raise BundleError(
            f"these kernels are linked to torch {kernels.torch or '(it is not said which)'}, not "
            f"{torch}: `{COMMAND}` beside torch {torch} makes others"
        )
    return torch


def cuda_there(kernels: Kernels, there: dict[str, str]) -> str:
    """The CUDA that the kernels run with, as torch there has it."""
    brought = next((there[name] for name in there if RUNTIME.match(name)), "")
    runs = ".".join(brought.split(".")[:2])
    cuda = kernels.cuda or runs
    if not cuda:
        raise BundleError("neither the kernels nor what torch brings says which CUDA is there")
    linked = kernels.runtime or cuda.split(".")[0]
    if any(one and one.split(".")[0] != linked for one in (runs, cuda)):
        raise BundleError(
            f"the kernels are for CUDA {kernels.cuda or linked} and torch there has {runs}: "
            f"`{COMMAND}` with nvcc {runs} makes others"
        )
    there_already = there.get(packages.FLASHINFER, kernels.flashinfer)
    if there_already != kernels.flashinfer:
        raise BundleError(
            f"the kernels are FlashInfer {kernels.flashinfer}'s and the machine has "
            f"{there_already}: `{COMMAND}` beside that one makes others, or remove it there"
        )
    return cuda


def wheel_of(checkout: Path, work: Path) -> Path:
    """Our wheel, of a copy: what was built in the checkout before may be in it no more."""
    source = work / "source"
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["tool"]["setuptools"]
    grafts = re.findall(r"^graft (\S+)$", (checkout / "MANIFEST.in").read_text(), re.M)
    for pattern in (*project["packages"]["find"]["include"], *grafts):
        for folder in filter(Path.is_dir, checkout.glob(pattern)):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(folder, source / folder.name, ignore=ignored)
    for file in filter(Path.is_file, checkout.iterdir()):
        shutil.copy(file, source)
    told = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(work / "wheels")]
    ran = subprocess.run([*PIP, *told, str(source)], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise BundleError(f"our wheel cannot be made:\n{ran.stderr.strip()}")
    return next((work / "wheels").glob("*.whl"))


def benchmark(target: Path) -> Path:
    """`bench/`, which is no part of our wheel, without what was measured."""
    left = {"results", "__pycache__"}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        for file in sorted(filter(Path.is_file, (CHECKOUT / "bench").rglob("*"))):
            inside = file.relative_to(CHECKOUT)
            if left.intersection(inside.parts):
                continue
            entry = zipfile.ZipInfo(str(inside))
            made.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return target


def write(made: Made, files: list[Path], options: argparse.Namespace) -> list[Path]:
    """The folders of the bundle, in place of those of one before."""
    most, part = int(options.folder_mb * parts.MB), int(options.part_mb * parts.MB)
    layout = parts.lay_out(files, part, most, RESERVED)
    manifest = made.manifest(files, layout)
    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.glob("bundle-*/manifest.json"):
        shutil.rmtree(old.parent)
    folders: list[Path] = []
    listed: list[dict[str, object]] = []
    for number, held in enumerate(layout, 1):
        folder = options.out / f"bundle-{number}"
        folder.mkdir()
        folders.append(folder)
        for one in held:
            file = folder / f"part-{len(listed) + 1}.zip"
            one.write(file)
            assert size(file) <= part
            listed.append(
                {
                    "name": file.name,
                    "folder": folder.name,
                    "bytes": size(file),
                    "sha256": parts.digest(file),
                }
            )
    text = json.dumps({**manifest, "parts": listed}, indent=1) + "\n"
    for folder in folders:
        (folder / "manifest.json").write_text(text)
        (folder / "carried").mkdir()
        for source in CARRIED.iterdir():
            if source.suffix == ".py":
                shutil.copy(source, folder / "carried")
            elif source.suffix == ".sh":
                shutil.copy(source, folder)
        assert sum(size(file) for file in folder.rglob("*")) <= most
    return folders


def size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def say(line: str) -> None:
    print(f"bundle: {line}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bundle", description=__doc__)
    parser.add_argument("--kernels", type=Path, help="FOLDER/NAME/NAME.so")
    parser.add_argument("--out", type=Path, default=Path("dist/bundle"), help="%(default)s")
    parser.add_argument("--python", default=running_python(), help="there; as here: %(default)s")
    parser.add_argument("--torch", help="there; as the kernels say")
    parser.add_argument("--transformers", help="there; as requirements.lock says")
    parser.add_argument(
        "--has", type=Path, help="`pip list --format=freeze` of the machine, instead of both"
    )
    parser.add_argument("--without", nargs="+", default=[], help="requirements to leave out")
    parser.add_argument("--flashinfer-wheel", type=Path, help="instead of the index's")
    parser.add_argument("--folder-mb", type=float, default=60.0, help="at most: %(default)s")
    parser.add_argument("--part-mb", type=float, default=40.0, help="at most: %(default)s")
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="bundle-") as work:
            made, files = make(options, Path(work))
            for file in files:
                say(f"  {size(file) / parts.MB:6.1f} MB  {file.name}")
            folders = write(made, files, options)
    except BundleError as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 2
    for folder in folders:
        held = sorted(folder.glob("part-*.zip"), key=lambda one: (len(one.name), one.name))
        sizes = ", ".join(f"{one.name} {size(one) / parts.MB:.1f}" for one in held)
        say(f"{folder}: {sizes} MB")
    say(
        f"for Python {made.target.python}, torch {made.torch}, CUDA {made.cuda}, FlashInfer "
        f"{made.kernels.flashinfer}, arch {made.kernels.arch}: {len(made.kernels.modules)} modules"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
