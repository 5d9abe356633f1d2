"""What a disk can do to weights: no room, no right to write, another start at the same time."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from appliance.config.errors import WeightsError

logger = logging.getLogger(__name__)

LEAST_ROOM = 1 << 20  # bytes; a disk with less is full
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WRITING = (*NO_ROOM, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


def made_folder(folder: Path) -> None:
    """Make a folder of the cache. Raises WeightsError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error


def temporary_folder(cache: Path) -> Path:
    """The system's folder for temporary files, or one in the cache where none can be written.

    Raises WeightsError where that cannot be either.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        folder = cache / "tmp"
    try:
        made_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, WeightsError) as error:
        raise WeightsError(
            "there is no folder for temporary files: /tmp cannot be written, and cache.folder "
            f"('{cache}') neither; set cache.folder or TMPDIR to one that can"
        ) from error


def check_cache(folder: Path) -> None:
    """Raise WeightsError unless the cache, made if need be, can be written and has any room."""
    made_folder(folder)
    for place in (folder, folder / "weights", folder / "hub"):
        if place.is_dir() and not os.access(place, os.W_OK | os.X_OK):
            owner, user = place.stat().st_uid, os.getuid()
            why = f"it belongs to user {owner}, this is {user}" if owner != user else "read-only"
            raise WeightsError(
                f"'{place}' cannot be written ({why}): set cache.folder to another folder"
            )
    if shutil.disk_usage(folder).free < LEAST_ROOM:
        raise WeightsError(f"the disk of '{folder}' is full: make room, or set cache.folder")


@contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock, whose name tells what of; another start that has it is waited for.

    The system lets go of it when the process that has it ends, however it ends.
    """
    made_folder(lock.parent)
    held = FileLock(lock)
    try:
        try:
            held.acquire(timeout=0)
        except Timeout:
            logger.info("another start has %s in hand: waiting for it", what)
            held.acquire()
    except (OSError, NotImplementedError) as error:
        raise unwritable(lock, error) from error
    try:
        yield
    finally:
        held.release()


def check_room(folder: Path, needed: int) -> None:
    """Raise WeightsError where a folder's disk has less room than that many bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise WeightsError(
            f"'{folder}' has room for {_gib(free)}, and {_gib(needed)} are needed there: "
            "make room, or set cache.folder"
        )


def unwritable(path: Path, error: BaseException, needed: int | None = None) -> WeightsError:
    """One line for what stopped the cache from being written."""
    code = system_code(error)
    if code in NO_ROOM:
        of = "" if needed is None else f": {_gib(needed)} are needed there"
        return WeightsError(f"no room was left in '{path}'{of}; make room, or set cache.folder")
    why = os.strerror(code).lower() if isinstance(code, int) else "the file system refused"
    return WeightsError(f"'{path}' cannot be written ({why}): set cache.folder to another folder")


def system_code(error: BaseException) -> int | None:
    """The errno of an error, also of the libraries in Rust, which only write it out."""
    code = getattr(error, "errno", None)
    if isinstance(code, int):
        return code
    written = re.search(r"\(os error (\d+)\)", str(error))
    return int(written[1]) if written else None


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB"
