"""Bytes of a file inside the one folder that `media.local_path` opens."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import ApplianceError, media_fetch_failed, media_not_allowed, media_too_large
from appliance.media.policy import MediaPolicy

logger = logging.getLogger("appliance.media")

PIECE = 1 << 20


def read_local_file(path: str, policy: MediaPolicy, *, param: str) -> bytes:
    """Content of the regular file at `path`, which must lie in the policy's folder.

    Symlinks are resolved first; then every folder of the real path is opened in turn, none of them
    through a symlink, so that what is read is inside whatever changes meanwhile. A hard link
    cannot be told from a file of its own. Raises ApplianceError.
    """
    if policy.local_path is None or not Path(path).is_absolute():
        raise _not_allowed(policy, param)
    folder = os.path.realpath(policy.local_path)
    try:
        inside = Path(os.path.realpath(path)).relative_to(folder)
    except (ValueError, OSError):
        raise _not_allowed(policy, param) from None
    if not inside.parts:
        raise _not_allowed(policy, param)
    try:
        with opened(folder, inside) as handle:
            return _read(handle, policy, param)
    except OSError as failure:
        logger.info("media not read", extra={"fields": {"reason": type(failure).__name__}})
        raise media_fetch_failed(
            f"The {policy.modality}'s file cannot be read here.", param, 424
        ) from None


@contextmanager
def opened(folder: str, inside: Path) -> Iterator[int]:
    """A descriptor of `inside` below `folder`, reached without following a symlink."""
    way = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(folder, way | os.O_DIRECTORY)
    try:
        for place, name in enumerate(inside.parts, start=1):
            last = place == len(inside.parts)
            # a pipe or a device must neither block nor become a controlling terminal
            kind = os.O_NONBLOCK | os.O_NOCTTY if last else os.O_DIRECTORY
            deeper = os.open(name, way | kind, dir_fd=handle)
            os.close(handle)
            handle = deeper
        yield handle
    finally:
        os.close(handle)


def _read(handle: int, policy: MediaPolicy, param: str) -> bytes:
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        raise _not_allowed(policy, param)
    content = bytearray()
    while len(content) <= policy.max_bytes and status.st_size <= policy.max_bytes:
        piece = os.read(handle, min(PIECE, policy.max_bytes + 1 - len(content)))
        if not piece:
            return bytes(content)
        content += piece
    raise media_too_large(policy.modality, policy.max_bytes, param)


def _not_allowed(policy: MediaPolicy, param: str) -> ApplianceError:
    return media_not_allowed(f"The {policy.modality}'s file is not one that may be read.", param)
