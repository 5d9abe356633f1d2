"""Checkpoints of the model hub: fetched once, found where they are, or only their headers."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from appliance.config.errors import WeightsError
from appliance.weights.progress import Progress, silent
from appliance.weights.room import WRITING, check_room, made_folder, system_code, unwritable
from engine.device.log_lines import join
from engine.errors import ModelUnsupported
from engine.memory.checkpoint import tensor_files
from engine.memory.plan import size

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TEXTS = ("*.json", "*.jinja", "*.txt", "*.model")
WANTED = [*TEXTS, "*.safetensors"]
BELOW = ["*/*"]  # folders of a repository hold the same in other forms
PLANNED = ["*config.json", "*.index.json"]  # what a plan is made of, beside headers of weights
FIRST_BYTES = 1 << 18  # of a file of weights; most headers are shorter
MOST_HEADER = 100_000_000  # bytes, as the format allows
ASKING_SECONDS = 10.0
AT_ONCE = 8


@dataclass(slots=True, frozen=True)
class Repository:
    """What the hub says of one revision: its commit, and the size of each file that is wanted."""

    name: str
    commit: str
    sizes: dict[str, int]

    def missing(self, snapshot: Path) -> int:
        """Bytes of it that a snapshot lacks."""
        lacking = 0
        for name, count in self.sizes.items():
            file = snapshot / name
            if not file.is_file() or file.stat().st_size != count:
                lacking += count
        return lacking

    def snapshot(self, cache: Path) -> Path:
        """Where a cache of the hub has it, if it has."""
        return cache / f"models--{self.name.replace('/', '--')}" / "snapshots" / self.commit


def is_hub_id(source: str) -> bool:
    """Whether `source` looks like `owner/name` and is no path of this machine."""
    looks = HUB_ID.fullmatch(source) is not None and not source.startswith(".")
    return looks and not Path(source).exists()


def own_cache() -> Path:
    """Where other programs of this user keep what they fetch from the hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def ask(name: str, revision: str | None) -> Repository:
    """What the hub has. Raises the errors of its library, and of the HTTP client beneath it."""
    from huggingface_hub import HfApi

    told = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=ASKING_SECONDS)
    sizes = {
        one.rfilename: one.size or 0
        for one in told.siblings or []
        if "/" not in one.rfilename and any(fnmatch(one.rfilename, like) for like in WANTED)
    }
    if not told.sha:
        raise OSError("the hub names no commit")
    return Repository(name, told.sha, sizes)


def from_hub(name: str, revision: str | None, cache: Path, progress: Progress = silent) -> Path:
    """Return the local snapshot of a repository, fetched when it is nowhere yet.

    Raises WeightsError.
    """
    join("huggingface_hub")
    repository: Repository | None = None
    try:
        repository = ask(name, revision)
    except Exception as error:  # its client's own among them; fetching says what is wrong
        logger.debug("the hub was asked in vain: %s", type(error).__name__)
    if repository is not None and (found := whole(repository, cache)):
        return found
    try:
        lacking = 0
        if repository is not None:
            link_weights(repository, cache)
            lacking = repository.missing(repository.snapshot(cache))
            made_folder(cache)
            check_room(cache, lacking)
        bar = counting(lacking, progress)
        return _snapshot(name, revision, cache, tqdm_class=bar, local_files_only=False)
    except Exception as error:  # its client's own beside those of the library
        return instead(error, name, revision, cache)


def link_weights(repository: Repository, cache: Path) -> None:
    """Put links into our cache to files of weights that another program has fetched.

    Texts are fetched again: those of a checkpoint may not be links to anywhere.
    """
    theirs, ours = repository.snapshot(own_cache()), repository.snapshot(cache)
    for name, count in repository.sizes.items():
        there, here = theirs / name, ours / name
        if name.endswith(".safetensors") and there.is_file() and there.stat().st_size == count:
            ours.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                here.symlink_to(there.resolve())


def outline(name: str, revision: str | None, cache: Path, temporary: Path) -> Path:
    """A folder to plan with: texts, and files of weights that have their headers and nothing else.

    They are as long as the real ones, and take no room: what was not written is a hole. Raises
    WeightsError.
    """
    join("huggingface_hub")
    try:
        repository = ask(name, revision)
        if found := whole(repository, cache):
            return found
        folder = _snapshot(
            name, repository.commit, temporary, allow_patterns=PLANNED, tqdm_class=counting(0)
        )
        files = [one for one in repository.sizes if one.endswith(".safetensors")]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda one: write_header(repository, one, folder / one), files))
        return folder
    except Exception as error:
        return instead(error, name, revision, cache)


def write_header(repository: Repository, name: str, file: Path) -> None:
    """Write the header of a file of weights, by its beginning and its length alone."""
    count = repository.sizes[name]
    begun = _range(repository, name, 0, min(count, FIRST_BYTES))
    length = 8 + int.from_bytes(begun[:8], "little")
    if length > min(count, MOST_HEADER):
        raise WeightsError(f"{repository.name}: {name} is no file of safetensors")
    if length > len(begun):
        begun += _range(repository, name, len(begun), length)
    with file.open("wb") as stream:
        stream.write(begun[:length])
        stream.truncate(count)


def _range(repository: Repository, name: str, start: int, end: int) -> bytes:
    """Bytes of a file of the hub; no more are read, whatever is sent."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
    )

    url = hf_hub_url(repository.name, name, revision=repository.commit)
    wanted = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}"}
    read = b""
    with get_session().stream("GET", url, headers=wanted, timeout=ASKING_SECONDS) as answer:
        hf_raise_for_status(answer)
        skip = start if answer.status_code == 200 else 0  # a hub that sends all from the beginning
        for chunk in answer.iter_bytes():
            read += chunk
            if len(read) >= skip + end - start:
                break
    found = read[skip : skip + end - start]
    if len(found) < end - start:
        raise OSError(f"the hub sent {len(found)} of {end - start} bytes")
    return found


def counting(total: int, progress: Progress = silent) -> type[Any]:
    """A bar for the hub's library that shows nothing and tells how many bytes there are.

    The library has several bars that count the same bytes: the one that is furthest is told.
    """
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    lock = threading.Lock()
    most = 0

    class Counting(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.counted = options.get("initial") or 0 if options.get("unit") == "B" else None
            options.pop("name", None)
            super().__init__(*arguments, **{**options, "disable": True})
            self.total = options.get("total")

        def update(self, count: float | None = 1) -> None:
            nonlocal most
            if self.counted is None:
                return
            with lock:
                self.counted += count or 0
                most = max(most, int(self.counted))
                all_of_it = total or int(self.total or 0)
                if all_of_it:
                    done = min(most, all_of_it)
                    detail = f"{size(done)} of {size(all_of_it)}"
                    progress("fetching weights", done / all_of_it, detail)

    return Counting


def whole(repository: Repository, cache: Path) -> Path | None:
    """A snapshot that has all of it: ours, or one that another program fetched."""
    for place in (cache, own_cache()):
        snapshot = repository.snapshot(place)
        if repository.sizes and not repository.missing(snapshot):
            logger.debug("found in %s", place)
            return snapshot
    return None


def has_weights(snapshot: Path) -> bool:
    """Whether a snapshot has a configuration, and all files of weights that its index names."""
    if not (snapshot / "config.json").is_file():
        return False
    try:
        files = {*tensor_files(snapshot).values()}
    except ModelUnsupported:
        return False
    return bool(files) and all(file.is_file() for file in files)


def instead(error: Exception, name: str, revision: str | None, cache: Path) -> Path:
    """What is cached of a repository that cannot be had. Raises WeightsError where nothing is."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, WeightsError):
        raise error
    if isinstance(error, GatedRepoError):
        why = f"'{name}' is gated: accept its licence and log in to the hub"
        raise WeightsError(why) from error
    if isinstance(error, RepositoryNotFoundError):
        raise WeightsError(f"the hub has no model '{name}' that may be read from here") from error
    if isinstance(error, RevisionNotFoundError):
        raise WeightsError(f"'{name}' has no revision '{revision}'") from error
    logger.debug("fetching from the hub failed: %s", type(error).__name__)
    for place in (cache, own_cache()):
        with contextlib.suppress(OSError, ValueError):
            found = _snapshot(name, revision, place, local_files_only=True)
            if place == cache or has_weights(found):  # others may have fetched some files only
                logger.warning("the model hub cannot be reached: %s is served as cached", name)
                return found
    if system_code(error) in WRITING:
        raise unwritable(cache, error) from error
    raise WeightsError(
        "the model hub cannot be reached; set model.path to a local folder, or start where the hub "
        f"can be reached: {name}"
    ) from error


def _snapshot(name: str, revision: str | None, cache: Path, **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    found = snapshot_download(
        name,
        revision=revision,
        cache_dir=cache,
        **{"allow_patterns": WANTED, "ignore_patterns": BELOW, **options},
    )
    return Path(str(found))
