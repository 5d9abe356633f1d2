"""The C library for the CPU as ctypes has it: its structs, its functions, its version."""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_void_p,
)
from functools import cache
from pathlib import Path
from typing import Any

VERSION = 4  # APPLIANCE_VERSION in cpu/interface.h
DTYPES = ("bfloat16", "float32")  # as `enum element` has them
FORMS = (  # of weights, as `enum form` has them
    None,
    "int8",
    "int4",
    "int8_halves",
    "int8_least",
    "segments",
)
MADE = ("int8", "int4")  # of weights of any type
SUMMED = ("int4", "int8_least", "segments")  # those that take sums of x
GROUP = 32  # inputs of one output that share a scale, where a weight is of integers
GROUP_HALVES = {  # of 16 bits: such a group, with what it means
    "int8": 17,
    "int4": 10,
    "int8_halves": 18,
    "int8_least": 18,
}
FILE = Path(__file__).parent / "libappliance.so"  # where the build leaves it


class Product(Structure):
    """`struct product`"""

    _fields_ = (
        ("packed", c_void_p),
        ("bias", c_void_p),
        ("out", c_int64),
        ("in_", c_int64),
        ("form", c_int64),
    )


class Segment(Structure):
    """`struct segment`"""

    _fields_ = (("packed", c_void_p), ("out", c_int64), ("form", c_int64))


class Norm(Structure):
    """`struct norm`"""

    _fields_ = (
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("epsilon", c_float),
        ("from_one", c_int32),
    )


class Layer(Structure):
    """`struct layer`"""

    _fields_ = (
        *((name, Product) for name in ("qkv", "output", "gate_up", "down")),
        *((name, Norm) for name in ("input", "mlp", "queries", "keys", "attended", "gated")),
        ("key_pages", c_void_p),
        ("value_pages", c_void_p),
        ("window", c_int64),
        ("rotary", c_int64),
    )


class Stack(Structure):
    """`struct stack`"""

    _fields_ = (
        ("layers", POINTER(Layer)),
        *(
            (name, c_int64)
            for name in (
                "count",
                "hidden",
                "intermediate",
                "heads",
                "kv_heads",
                "head_dim",
                "value_dim",
                "page_size",
            )
        ),
        ("scale", c_float),
        ("soft_cap", c_float),
        ("activation", c_int32),
        ("element", c_int32),
        ("ungated", c_int32),
    )


class Batch(Structure):
    """`struct batch`"""

    _fields_ = (
        ("sequences", c_int64),
        ("tokens", c_int64),
        ("query_start", c_void_p),
        ("page_start", c_void_p),
        ("page_indices", c_void_p),
        ("lengths", c_void_p),
        ("slots", c_void_p),
        ("last_seen", c_void_p),
    )


class Choice(Structure):
    """`struct choice`"""

    _fields_ = (
        ("point", c_double),
        ("temperature", c_float),
        ("top_p", c_float),
        ("min_p", c_float),
        ("top_k", c_int32),
        ("allowed", c_void_p),
    )


class Step(Structure):
    """`struct step`"""

    _fields_ = (
        ("batch", POINTER(Batch)),
        ("residual", c_void_p),
        ("normed", c_void_p),
        ("cosines", c_void_p * 2),
        ("sines", c_void_p * 2),
        ("final", Norm),
        ("first", c_int64),
        ("last", c_int64),
        ("scratch", c_void_p),
    )


FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "appliance_version": (c_int, ()),
    "appliance_variant": (c_char_p, (c_int, c_int)),
    "appliance_machine": (c_void_p, (c_char_p, c_int)),
    "appliance_machine_free": (None, (c_void_p,)),
    "appliance_reserve": (c_int, (c_void_p, POINTER(Stack))),
    "appliance_reserve_choice": (c_int, (c_void_p, c_int64)),
    "appliance_choose": (
        None,
        (c_void_p, c_void_p, POINTER(Choice), c_int64, c_int64, c_void_p),
    ),
    "appliance_seconds": (None, (c_void_p, POINTER(c_double))),
    "appliance_pack": (None, (c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64, c_int64)),
    "appliance_quantize": (c_int, (c_void_p, c_int, c_void_p, c_int, *(c_int64,) * 5)),
    "appliance_repack": (c_int, (c_void_p, c_int, c_void_p, c_int, *(c_int64,) * 5)),
    "appliance_multiply": (
        None,
        (c_void_p, c_int, POINTER(Product), c_void_p, c_int64, c_void_p, c_int, c_void_p),
    ),
    "appliance_likeliest": (
        None,
        (c_void_p, c_int, POINTER(Product), c_void_p, c_int64, c_int64, *(c_void_p,) * 3),
    ),
    "appliance_scratch": (c_int64, (POINTER(Stack), POINTER(Batch))),
    "appliance_attend": (
        None,
        (c_void_p, POINTER(Stack), c_int64, POINTER(Batch), *(c_void_p,) * 5),
    ),
    "appliance_compute": (None, (c_void_p, POINTER(Stack), POINTER(Step))),
    "appliance_resize": (c_int, (c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int64, c_int)),
}


PARTS = ("products", "norms", "rotation", "attention", "head", "choice")  # of a step
MOST_PARTS = 8
AGAIN = "build it by `python -m engine.native.build`"


class LibraryUnusable(Exception):
    """There is no library, or not the one that this code was written for."""


def _cut_off(file: Path) -> bool:
    """Whether a file ends before the sections its ELF header tells of: loaded, it may end us."""
    with file.open("rb") as opened:
        header = opened.read(64)
    sections = int.from_bytes(header[40:48], "little")
    size, count = header[58:60], header[60:62]
    end = sections + int.from_bytes(size, "little") * int.from_bytes(count, "little")
    return end > file.stat().st_size


@cache
def library(file: Path = FILE) -> Any:
    """The functions in `file`. Raises LibraryUnusable."""
    try:
        if _cut_off(file):
            raise OSError("a part of it is missing")
        loaded = ctypes.CDLL(str(file))
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        why = "cannot be loaded" if file.exists() else "was not built when this was installed"
        raise LibraryUnusable(f"{file.name} {why}: {AGAIN}") from error
    version = loaded.appliance_version()
    if version != VERSION:
        raise LibraryUnusable(
            f"{file.name} is of version {version} of its interface, and this is {VERSION}: {AGAIN}"
        )
    return loaded


def variants(*, everywhere: bool = False, file: Path = FILE) -> list[str]:
    """Those that this processor runs, or that there are; fastest first. Raises LibraryUnusable."""
    loaded = library(file)
    found: list[str] = []
    while (name := loaded.appliance_variant(len(found), everywhere)) is not None:
        found.append(name.decode())
    return found
