"""Files laid into parts, and parts into folders, none of them larger than may be carried at once.

A part is a ZIP of whole files, uncompressed since wheels are compressed; only a file that is larger
than a part is cut into pieces, NAME.1-of-3. So parts unpack in any order, by any unzip.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tools.bundle.errors import BundleError

MB = 1_000_000
ENTRY = 512  # bytes of a ZIP for an entry beside its content, at most: names are short


@dataclass(slots=True, frozen=True)
class Piece:
    """Bytes of a file, under the name that they have in a part."""

    name: str
    file: Path
    start: int
    size: int


@dataclass(slots=True)
class Part:
    pieces: list[Piece] = field(default_factory=list)
    size: int = ENTRY

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.size += piece.size + ENTRY

    def write(self, target: Path) -> None:
        with zipfile.ZipFile(target, "w") as made:
            for piece in self.pieces:
                with piece.file.open("rb") as source:
                    source.seek(piece.start)
                    made.writestr(zipfile.ZipInfo(piece.name), source.read(piece.size))


def cut(file: Path, most: int) -> list[Piece]:
    """A file as it goes into parts of at most so many bytes."""
    size, most = file.stat().st_size, most - 2 * ENTRY
    if most <= 0:
        raise BundleError("a part of so few bytes holds nothing")
    if size <= most:
        return [Piece(file.name, file, 0, size)]
    starts = range(0, size, most)
    return [
        Piece(f"{file.name}.{number}-of-{len(starts)}", file, start, min(most, size - start))
        for number, start in enumerate(starts, 1)
    ]


def lay_out(files: Iterable[Path], part: int, folder: int, reserved: int) -> list[list[Part]]:
    """Parts by folder; each file goes to the first that has room, so the first files come first.

    Sizes in bytes; of a folder `reserved` are taken by what lies beside the parts.
    """
    part = min(part, folder - reserved)
    folders: list[list[Part]] = []
    for piece in (piece for file in files for piece in cut(file, part)):
        _first_with_room(folders, piece.size + ENTRY, part, folder - reserved).add(piece)
    return folders


def _first_with_room(folders: list[list[Part]], size: int, part: int, folder: int) -> Part:
    for parts in folders:
        left = folder - sum(one.size for one in parts)
        for one in parts:
            if size <= min(left, part - one.size):
                return one
        if size + ENTRY <= min(left, part):
            parts.append(Part())
            return parts[-1]
    folders.append([Part()])
    return folders[-1][0]


def digest(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
