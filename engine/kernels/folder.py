"""A folder of compiled kernels: NAME/NAME.so each, and a manifest of what they are and fit."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.kernels.architecture import ArchitectureUnknown, capability_of, covers
from engine.kernels.versions import Versions
from engine.models.documents import CheckpointBroken, read_document

MANIFEST = "manifest.json"
NAME = re.compile(r"\w{1,250}", re.ASCII)
TEXT = re.compile(r"[\w.]{0,40}", re.ASCII)
UNREADABLE = (
    CheckpointBroken,
    ArchitectureUnknown,
    *(ValueError, LookupError, TypeError, AttributeError),
)


class KernelsUnfit(EngineError):
    """Compiled kernels are broken, or of another machine."""

    correctable = True


@dataclass(slots=True, frozen=True)
class Manifest:
    """What a folder's kernels were compiled with and for, and each library's SHA-256 and size."""

    versions: Versions
    architectures: tuple[str, ...]
    modules: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"sm {' '.join(self.architectures)} ({self.versions})"

    def runs(self, architectures: tuple[str, ...], there: Versions) -> bool:
        """Whether they run on cards of these architectures, with those packages."""
        return self.versions.serve(there) and all(
            covers(self.architectures, capability_of(one)) for one in architectures
        )


class KernelFolder:
    """Kernels on disk. Raises KernelsUnfit for a manifest that nobody can have written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def library(self, name: str) -> Path:
        return self.path / name / f"{name}.so"

    def manifest(self) -> Manifest | None:
        """None where nothing has been compiled yet."""
        file = self.path / MANIFEST
        if not os.path.lexists(file):
            return None
        try:
            return _manifest(read_document(file))
        except UNREADABLE as bad:
            raise KernelsUnfit(f"{file} is no manifest of compiled kernels: remove it") from bad

    def intact(self) -> frozenset[str]:
        """Names of the libraries that are there, to the last byte."""
        manifest = self.manifest()
        if manifest is None:
            return frozenset()
        return frozenset(
            name
            for name, (digest, size) in manifest.modules.items()
            if _is(self.library(name), digest, size)
        )

    def keep(
        self, libraries: Mapping[str, Path], versions: Versions, architectures: tuple[str, ...]
    ) -> None:
        """Copy compiled libraries here, beside those of the same kind that are here already.

        What was compiled for something else is removed. The manifest comes last: whoever reads
        it finds what it lists.
        """
        before = self.manifest()
        modules: dict[str, tuple[str, int]] = {}
        same = before is not None and before.architectures == architectures
        if before is not None and same and before.versions.serve(versions):
            modules |= before.modules
        for name in before.modules if before is not None else ():
            if name not in modules:
                shutil.rmtree(self.path / name, ignore_errors=True)
        for name, made in libraries.items():
            target = self.library(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_suffix(".part")
            shutil.copyfile(made, part)
            modules[name] = (_digest(part), part.stat().st_size)
            os.replace(part, target)
        text = json.dumps(_content(Manifest(versions, architectures, modules)), indent=1)
        part = self.path / f"{MANIFEST}.part"
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, self.path / MANIFEST)


def _is(file: Path, digest: str, size: int) -> bool:
    try:
        return file.is_file() and file.stat().st_size == size and _digest(file) == digest
    except OSError:
        return False


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _content(manifest: Manifest) -> dict[str, Any]:
    return {
        **asdict(manifest.versions),
        "architectures": manifest.architectures,
        "modules": {
            name: {"sha256": digest, "bytes": size}
            for name, (digest, size) in sorted(manifest.modules.items())
        },
    }


def _manifest(content: dict[str, Any]) -> Manifest:
    texts = [content[name] for name in ("flashinfer", "torch", "cuda")]
    architectures = tuple(content["architectures"])
    for architecture in architectures:
        capability_of(architecture)
    modules = {
        name: (str(entry["sha256"]), int(entry["bytes"]))
        for name, entry in content["modules"].items()
    }
    if not all(map(NAME.fullmatch, modules)) or not all(map(TEXT.fullmatch, texts)):
        raise ValueError
    return Manifest(Versions(*texts), architectures, modules)
