"""Wheels written by us: FlashInfer's without what is never called, with compiled kernels in it.

The rules were found by reading what flashinfer 0.7.2 imports, and tried: what stays imports, and
still compiles every module that the engine asks for.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SOURCES = "flashinfer/data/csrc/"
LOOSE = ("cake_", "alphamoe")  # sources of kernels that the engine never asks for
EXPERIMENTAL = "flashinfer/experimental/"
IMPORTED = "flashinfer/experimental/cake_nvfp4_per_token/"  # with the package itself
DROPPED = ("flashinfer/moe_ep/", "flashinfer/data/spdlog/", "flashinfer/data/cutlass/")
COMPILED = "flashinfer/data/aot/{0}/{0}.so"  # where FlashInfer looks before it compiles


def wanted(name: str) -> bool:
    """Whether a file of FlashInfer's wheel is of use for attention, norms, rope and sampling."""
    if name.startswith(SOURCES):
        rest = name.removeprefix(SOURCES)
        return "/" not in rest and not rest.startswith(LOOSE)
    if name.startswith(EXPERIMENTAL):
        return name.startswith(IMPORTED) or "/" not in name.removeprefix(EXPERIMENTAL)
    return not name.startswith(DROPPED)


def trim(source: Path, target: Path, kernels: Mapping[str, Path], there: Collection[str]) -> None:
    """Write FlashInfer's wheel `source` anew, smaller and with `kernels` by their names.

    Of its requirements those stay that are in `there`, canonical names: a package that only what
    was dropped asks for is not missing.
    """
    with zipfile.ZipFile(source) as given:
        record = next(one for one in given.namelist() if one.endswith(".dist-info/RECORD"))
        metadata = record.replace("RECORD", "METADATA")

        def contents() -> Iterator[tuple[str, bytes]]:
            for name in given.namelist():
                if name.endswith("/") or name == record or not wanted(name):
                    continue
                data = given.read(name)
                yield name, _needing(data, there) if name == metadata else data
            for name, so in kernels.items():
                yield COMPILED.format(name), so.read_bytes()

        write_wheel(target, contents(), record)


def write_wheel(target: Path, contents: Iterator[tuple[str, bytes]], record: str) -> None:
    """A wheel of these files, and of a RECORD with the digest of each."""
    rows: list[tuple[str, str, str]] = []
    with zipfile.ZipFile(target, "w") as made:
        for name, data in contents:
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
            rows.append((name, f"sha256={digest.decode()}", str(len(data))))
            made.writestr(*_entry(name, data), compresslevel=9)
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([*rows, (record, "", "")])
        made.writestr(*_entry(record, table.getvalue().encode()), compresslevel=9)


def _entry(name: str, data: bytes) -> tuple[zipfile.ZipInfo, bytes]:
    """Without today's date: the same files make the same wheel."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry, data


def _needing(metadata: bytes, there: Collection[str]) -> bytes:
    head, blank, text = metadata.partition(b"\n\n")
    kept = []
    for line in head.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"Requires-Dist":
            name = Requirement(value.decode().strip()).name
            if canonicalize_name(name) not in there:
                continue
        kept.append(line)
    return b"\n".join(kept) + blank + text
