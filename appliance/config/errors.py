"""The errors of configuration, and the search for the name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

USAGE_ERROR = 2  # exit code of a command that its user can correct


# What people call what has another name here; the nearest by its letters would be wrong.
MEANT = {
    "gpu": "cuda",
    "nvidia": "cuda",
    "flashinfer": "cuda",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "full": "float32",
    "jpg": "JPEG",
    "tif": "TIFF",
    "heic": "HEIF",
    "text": "human",
    "docker": "container",
    "localhost": "local",
    "warn": "warning",
    "none": "deny",
    "off": "deny",
    "never": "deny",
}


class ConfigurationError(Exception):
    """The configuration cannot be used; the message is one line for the person who wrote it."""


class WeightsError(ConfigurationError):
    """The weights cannot be had; one line that says why."""


def suggestion(wrong: str, names: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the nearest of `names`, or nothing when none is near."""
    known = list(names)
    if (meant := MEANT.get(wrong.lower())) in known and wrong not in known:
        return f" (did you mean '{meant}'?)"
    found = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    if (
        not found
    ):  # the last part alone, the group forgotten or wrong: image.limit for media.image.limit
        last = {name.rpartition(".")[2]: name for name in reversed(known)}
        found = [
            last[part]
            for part in difflib.get_close_matches(wrong.rpartition(".")[2], last, n=1, cutoff=0.75)
        ]
    return f" (did you mean '{found[0]}'?)" if found else ""
