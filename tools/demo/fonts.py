"""Fonts for pictures with writing: which are trained on and which are kept for the evaluation.

Fonts of the machine are used, by family. The lists of Debian packages are in README.md; a family
that is not installed is left out, and `python -m tools.demo.fonts` prints what was found.
"""

from __future__ import annotations

import functools
from pathlib import Path

from PIL import ImageFont

FOLDERS = (Path("/usr/share/fonts"), Path.home() / ".fonts")
SUFFIXES = {".ttf", ".otf"}

# Whole families, so that no other weight of a held-out face was ever seen.
HELD_OUT = ("dejavusans", "liberationserif", "opensans", "firacode", "cabin")
# Not for reading: symbols, other scripts, capitals that are not plain letters.
UNFIT = (
    "math", "symbol", "dingbat", "emoji", "icon", "awesome", "d050000l", "standardsymbols",
    "z003", "lobster", "ecolier", "unifraktur", "initials", "keyboard", "keys", "drcaps",
    "carlito", "dejavusansmono",  # drawn after a face of the other side
    "chorus", "cursor", "thin", "hairline", "ultralight", "extralight",
)  # fmt: skip
NOTO = tuple(
    f"noto{face}{weight}"
    for face in ("sans", "serif", "sansmono", "sansdisplay", "serifdisplay")
    for weight in ("regular", "bold")
)
LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@functools.cache
def faces(held_out: bool) -> list[Path]:
    """Return the font files of one side of the split; raises FileNotFoundError without any."""
    files = sorted(
        {
            _key(file): file
            for folder in FOLDERS
            for file in sorted(folder.rglob("*"))
            if file.suffix in SUFFIXES and _fit(file)
        }.values()
    )
    chosen = [file for file in files if _key(file).startswith(HELD_OUT) == held_out]
    if not chosen:
        raise FileNotFoundError("no fonts: see tools/demo/README.md for packages that bring them")
    return chosen


@functools.lru_cache(maxsize=4096)
def face(file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(file), size)


def _key(file: Path) -> str:
    return "".join(character for character in file.stem.lower() if character.isalnum())


def _fit(file: Path) -> bool:
    key = _key(file)
    if any(part in key for part in UNFIT):
        return False
    if "noto" in key and not key.startswith(NOTO):
        return False  # one file a script
    try:
        font = face(file, 24)
        missing = bytes(font.getmask("\uffff"))
        drawn = {bytes(font.getmask(letter)) for letter in LETTERS}
    except (OSError, ValueError):
        return False
    return missing not in drawn and len(drawn) >= len(LETTERS) - 1


if __name__ == "__main__":
    for held_out in (False, True):
        found = faces(held_out)
        print("held out" if held_out else "training", len(found))
        print("  " + " ".join(file.stem for file in found))
