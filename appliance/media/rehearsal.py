"""What decoders and families load only when they are first used, loaded before workers are forked.

A worker opens no file, so an import of its own would fail; and what one has loaded, all have.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import pkgutil
from collections.abc import Callable, Iterable
from wave import Wave_write

from PIL import AvifImagePlugin, Image

from appliance.media.image_formats import register
from engine.models.family import Family, VideoOptions

PACKAGES = ("av", "PIL")
LEFT_OUT = (
    *("PIL.ImageGrab", "PIL.ImageQt", "PIL.ImageShow", "PIL.ImageTk", "PIL._tkinter_finder"),
    *("PIL.__main__", "PIL.report"),  # which print
)
ENCODINGS = ("ascii", "cp437", "cp1252", "latin_1", "utf_16", "utf_16_be", "utf_16_le", "utf_32")
SIDE = 227  # pixels of a blank picture: no family takes it as it is, so that it is resized
UNFIT = (ValueError, KeyError)  # what a family says to an item that it cannot take


def rehearse(kinds: Iterable[str], family: Family) -> None:
    """Load all that preparing items of these kinds may need."""
    for name in PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if module.name not in LEFT_OUT:
                with contextlib.suppress(ImportError):  # of a decoder that was not built
                    importlib.import_module(module.name)
    for encoding in ENCODINGS:
        importlib.import_module(f"encodings.{encoding}")
    register()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # worker processes are the parallelism
    blanks: dict[str, Callable[[Family], object]] = {
        "image": lambda family: family.preprocess_image(_blank()),
        "video": lambda family: family.preprocess_video([_blank()] * 2, 2, VideoOptions()),
        "audio": _hear_nothing,
    }
    for kind in kinds:
        if kind in blanks:
            with contextlib.suppress(*UNFIT):
                blanks[kind](family)


def _blank() -> Image.Image:
    return Image.new("RGB", (SIDE, 2 * SIDE))


def _hear_nothing(family: Family) -> object:
    import soundfile  # only where sound is taken

    rate = family.audio_rate()
    with io.BytesIO() as file:
        with Wave_write(file) as wave:
            wave.setparams((1, 2, rate, rate, "NONE", ""))
            wave.writeframes(bytes(2 * rate))
        file.seek(0)
        samples, _ = soundfile.read(file, dtype="float32")
    return family.preprocess_audio(samples)
