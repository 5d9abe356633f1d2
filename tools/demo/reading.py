"""Pictures with writing: numbers and words in capitals."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from PIL import Image, ImageDraw, ImageFont

from tools.demo import fonts, palette
from tools.demo.palette import Colour
from tools.demo.scene import blank, finish

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORDS: dict[str, list[str]] = {
    side: words.split()
    for side, words in yaml.safe_load(
        (Path(__file__).parent / "words.yaml").read_text(encoding="utf-8")
    ).items()
}


@dataclass(slots=True)
class Writing:
    """One piece of writing: `x`, `y` the middle as fractions of the sides, `height` likewise."""

    text: str
    x: float
    y: float
    height: float
    width: float


@dataclass(slots=True)
class Page:
    """A picture with writing, before it is drawn."""

    background: str
    background_rgb: Colour
    colour: str
    rgb: Colour
    aspect: float
    face: Path
    turned: float = 0.0  # degrees
    lines: list[Writing] = field(default_factory=list)


def random_text(rng: random.Random, kind: str, held_out: bool) -> str:
    """Return a number ("number"), a word ("word") or a string of letters ("letters")."""
    if kind == "number":
        digits = rng.choice((1, 2, 3, 3, 4, 4))
        first = rng.choice("123456789" if digits > 1 else "0123456789")
        return first + "".join(rng.choice("0123456789") for _ in range(digits - 1))
    if kind == "word":
        return rng.choice(WORDS["held out" if held_out else "training"])
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(2, 6)))


def random_page(rng: random.Random, *, held_out: bool = False, many: bool = False) -> Page:
    """Return a page of one text, or of several in rows where `many`."""
    while True:
        background = "white" if rng.random() < 0.4 else rng.choice(palette.NAMES)
        behind = palette.shade(background, rng)
        colour = "black" if rng.random() < 0.3 else rng.choice(palette.NAMES)
        rgb = palette.shade_on(colour, behind, rng, legible=True) if colour != background else None
        if rgb is not None:
            break
    face = rng.choice(fonts.faces(held_out))
    if many:
        page = Page(background, behind, colour, rgb, 1.0, face)
        _fill_rows(page, rng, held_out)
        return page
    text = random_text(rng, "number" if rng.random() < 0.5 else _word_kind(rng, held_out), held_out)
    aspect = rng.choice((1.0, 1.0, 1.3, 1.6, 2.0, 2.6)) if len(text) > 1 else rng.choice((1.0, 0.8))
    page = Page(background, behind, colour, rgb, aspect, face)
    page.turned = rng.uniform(-6, 6) if rng.random() < 0.25 else 0.0
    widest = rng.uniform(0.5, 0.95) if len(text) > 2 else rng.uniform(0.25, 0.7)
    height = min(rng.uniform(0.18, 0.75), widest * aspect / (len(text) * 0.55))
    height = max(height, 0.14 * max(1.0, aspect) ** 0.5)
    width = min(0.96, widest)
    x = rng.uniform(width / 2, 1 - width / 2) if rng.random() < 0.5 else 0.5
    y = rng.uniform(height / 2, 1 - height / 2) if rng.random() < 0.5 else 0.5
    page.lines.append(Writing(text, x, y, height, width))
    return page


def _word_kind(rng: random.Random, held_out: bool) -> str:
    return "word" if held_out or rng.random() < 0.6 else "letters"


def _fill_rows(page: Page, rng: random.Random, held_out: bool) -> None:
    rows, columns = rng.choice(((2, 1), (3, 1), (2, 2), (3, 2), (4, 1)))
    for row in range(rows):
        for column in range(columns):
            kind = rng.choice(("number", "number", "word", "letters"))
            text = random_text(rng, kind, held_out)
            if columns > 1:
                text = text[:4]
            cell = 1 / columns
            width = cell * rng.uniform(0.6, 0.94)
            height = min(rng.uniform(0.14, 0.24), 0.9 / rows)
            x = (column + 0.5) * cell + rng.uniform(-0.5, 0.5) * (cell - width)
            y = (row + 0.5) / rows + rng.uniform(-0.3, 0.3) * (1 / rows - height)
            page.lines.append(Writing(text, x, y, height, width))


def draw(page: Page, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Return the page at `size` (width, height)."""
    large = (size[0] * 2, size[1] * 2)
    canvas = blank(page.background_rgb, large, rng)
    for line in page.lines:
        font, corner = placed(page, line, large)
        mask = Image.new("L", large)
        ImageDraw.Draw(mask).text(corner, line.text, font=font, fill=255)
        if page.turned:
            mask = mask.rotate(page.turned, Image.Resampling.BICUBIC)
        canvas.paste(page.rgb, (0, 0), mask)
    return finish(canvas, size, rng)


def placed(
    page: Page, line: Writing, size: tuple[int, int]
) -> tuple[ImageFont.FreeTypeFont, tuple[float, float]]:
    """Return the font and the corner at which a line is drawn on a page of `size`."""
    font = _fitting(page.face, line, *size)
    left, top, right, bottom = font.getbbox(line.text)
    x, y = line.x * size[0] - (left + right) / 2, line.y * size[1] - (top + bottom) / 2
    x = min(max(x, 2 - left), size[0] - 2 - right)
    return font, (x, min(max(y, 2 - top), size[1] - 2 - bottom))


def _fitting(file: Path, line: Writing, width: int, height: int) -> ImageFont.FreeTypeFont:
    size = max(8, round(line.height * height / 0.72))  # capitals are about 0.72 of the size
    left, _, right, _ = fonts.face(file, size).getbbox(line.text)
    if right - left > line.width * width:
        size = max(8, int(size * line.width * width / (right - left)))
    return fonts.face(file, size)
