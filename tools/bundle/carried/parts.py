"""The parts of a bundle: found, compared with their digests, unpacked in any order."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path
from typing import Any

BLOCK = 1 << 20


class Lacking(Exception):
    """One line about parts that are missing or damaged."""


def find(manifest: dict[str, Any], places: list[Path]) -> dict[str, Path]:
    """Sound parts by name, each from the first place that has it.

    Raises Lacking for parts that are only there damaged.
    """
    found: dict[str, Path] = {}
    damaged: dict[str, str] = {}
    for part in manifest["parts"]:
        name = part["name"]
        for file in (place / name for place in places):
            if not file.is_file():
                continue
            fault = wrong(file, part["bytes"], part["sha256"])
            if not fault:
                found[name] = file
                break
            damaged[name] = f"'{file}' ({fault})"
    if lost := [fault for name, fault in damaged.items() if name not in found]:
        raise Lacking(f"damaged, or of another bundle: {', '.join(lost)}. Bring it again")
    return found


def missing(manifest: dict[str, Any], found: dict[str, Path]) -> str:
    """Which parts are not there, with their folders; empty if all are."""
    names = [
        f"{part['name']} of {part['folder']}"
        for part in manifest["parts"]
        if part["name"] not in found
    ]
    return ", ".join(names)


def wrong(file: Path, size: int, digest: str) -> str:
    """How a file differs from what was made; empty if it does not."""
    there = file.stat().st_size
    if there != size:
        return f"{there} bytes, not {size}"
    made = hashlib.sha256()
    with file.open("rb") as source:
        while block := source.read(BLOCK):
            made.update(block)
    return "" if made.hexdigest() == digest else f"SHA-256 {made.hexdigest()}, not {digest}"


def unpack(manifest: dict[str, Any], parts: list[Path], into: Path) -> list[Path]:
    """Files of all parts, joined from their pieces, in the order of the manifest."""
    into.mkdir(parents=True)
    for part in parts:
        with zipfile.ZipFile(part) as packed:
            for entry in packed.infolist():
                file = into / Path(entry.filename).name
                with packed.open(entry) as source, file.open("wb") as target:
                    shutil.copyfileobj(source, target, BLOCK)
    files = []
    for one in manifest["files"]:
        file, count = into / one["name"], one["pieces"]
        if count > 1:
            join([into / f"{file.name}.{n}-of-{count}" for n in range(1, count + 1)], file)
        fault = wrong(file, one["bytes"], one["sha256"])
        if fault:
            raise Lacking(f"{one['name']} is not what was packed: {fault}")
        files.append(file)
    return files


def join(pieces: list[Path], file: Path) -> None:
    with file.open("wb") as target:
        for piece in pieces:
            with piece.open("rb") as source:
                shutil.copyfileobj(source, target, BLOCK)
            piece.unlink()
