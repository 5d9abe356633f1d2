"""Secrets in environment variables, which every process that is started would inherit."""

from __future__ import annotations

import os
from collections.abc import Iterable

HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def hub_tokens() -> list[str]:
    """What opens the model hub."""
    return [os.environ[name] for name in HUB_TOKENS if name in os.environ]


def forget(names: Iterable[str]) -> None:
    """Take variables out of the environment of this process and of those that it starts."""
    for name in names:
        os.environ.pop(name, None)
