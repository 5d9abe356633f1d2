"""Draw the foreign pictures, with everything but the demo's generator.

    pip install cairocffi resvg-py skia-python matplotlib blend2d-py aggdraw pillow
    python -m tools.demo.draw_foreign

Vector graphics by resvg (SVG), cairo, Skia, Agg (through matplotlib and aggdraw) and Blend2D, fonts
that matplotlib brings along and the one of Pillow, and pixels set by hand. What is asked about them
stands beside them in questions.json and was written before the model first saw them; nothing was
left out afterwards.
"""

from __future__ import annotations

import io
import math

import aggdraw
import blend2d
import cairocffi as cairo
import matplotlib
import numpy as np
import resvg_py
import skia
from PIL import Image, ImageDraw, ImageFont

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import patches

from bench.exam.questions import FOREIGN


def kept(name: str, picture: Image.Image) -> None:
    """Write a picture; those of few colours as a palette where nothing is lost."""
    colours = picture.getcolors(256)
    if picture.mode == "RGB" and colours:
        picture = picture.quantize(len(colours), dither=Image.Dither.NONE)
    picture.save(FOREIGN / f"{name}.png", optimize=True)


def opaque(picture: Image.Image) -> Image.Image:
    """Return the picture in RGB where nothing in it is transparent."""
    return picture.convert("RGB") if picture.getchannel("A").getextrema()[0] == 255 else picture


# ---- SVG, by resvg


def svg(name: str, body: str, width: int = 240, height: int = 240) -> None:
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">{body}</svg>'
    )
    picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=text))))
    kept(name, opaque(picture.convert("RGBA")))


HEART = (
    "M120 200 C20 130 40 40 90 50 C110 54 118 70 120 84 "
    "C122 70 130 54 150 50 C200 40 220 130 120 200Z"
)


def draw_svg() -> None:
    white = '<rect width="100%" height="100%" fill="white"/>'
    svg("svg-heart", f'{white}<path d="{HEART}" fill="crimson"/>')
    svg("svg-heart-transparent", f'<path d="{HEART}" fill="hotpink"/>')
    # a button with round corners and a stroke, not centred
    svg("svg-square", '<rect width="300" height="200" fill="#222"/>'
        '<rect x="30" y="40" width="90" height="90" rx="6" fill="orange" stroke="white" '
        'stroke-width="2"/>', 300, 200)  # fmt: skip
    svg("svg-traffic-light", '<rect width="120" height="300" fill="#000"/>'
        '<circle cx="60" cy="55" r="40" fill="#e02020"/><circle cx="60" cy="150" r="40" '
        'fill="#f5d000"/><circle cx="60" cy="245" r="40" fill="#10a030"/>', 120, 300)  # fmt: skip
    plus = "M90 30h60v60h60v60h-60v60h-60v-60h-60v-60h60z"
    svg("svg-plus-transparent", f'<path d="{plus}" fill="#d40000"/>')
    # a radial gradient, as icons have it
    svg("svg-ball", '<defs><radialGradient id="g" cx="40%" cy="35%"><stop offset="0" '
        'stop-color="#5588ff"/><stop offset="1" stop-color="#1133bb"/></radialGradient></defs>'
        f'{white}<circle cx="130" cy="120" r="80" fill="url(#g)"/>')  # fmt: skip


# ---- cairo


def surface(width: int, height: int, colour: tuple[float, float, float] | None) -> cairo.Context:
    context = cairo.Context(cairo.ImageSurface(cairo.FORMAT_ARGB32, width, height))
    if colour is not None:
        context.set_source_rgb(*colour)
        context.paint()
    return context


def keep_surface(name: str, context: cairo.Context) -> None:
    held = io.BytesIO()
    context.get_target().write_to_png(held)
    kept(name, opaque(Image.open(held).convert("RGBA")))


def star_path(context: cairo.Context, x: float, y: float, radius: float, points: int = 5) -> None:
    for step in range(2 * points):
        angle = math.pi * step / points - math.pi / 2
        length = radius if step % 2 == 0 else radius * 0.45
        context.line_to(x + length * math.cos(angle), y + length * math.sin(angle))
    context.close_path()


def draw_cairo() -> None:
    context = surface(200, 200, (0.05, 0.1, 0.55))
    star_path(context, 100, 100, 70)
    context.set_source_rgb(1, 0.9, 0.1)
    context.fill()
    keep_surface("cairo-star", context)

    context = surface(320, 180, (1, 1, 1))
    for x, colour in ((60, (0.8, 0, 0)), (160, (0, 0.5, 0)), (260, (0.1, 0.2, 0.85))):
        context.move_to(x, 50)
        context.line_to(x + 40, 130)
        context.line_to(x - 40, 130)
        context.close_path()
        context.set_source_rgb(*colour)
        context.fill()
    keep_surface("cairo-three-triangles", context)

    context = surface(200, 200, None)
    context.arc(100, 100, 60, 0, 2 * math.pi)
    context.set_source_rgb(0.5, 0.0, 0.5)
    context.fill()
    keep_surface("cairo-circle-transparent", context)


# ---- Skia


def draw_skia() -> None:
    def canvas(name: str, width: int, height: int, draw: object) -> None:
        made = skia.Surface(width, height)
        with made as target:
            draw(target)  # type: ignore[operator]
        array = made.makeImageSnapshot().toarray(colorType=skia.kRGBA_8888_ColorType)
        kept(name, Image.fromarray(array).convert("RGB"))

    def paint(colour: int) -> skia.Paint:
        return skia.Paint(Color=colour, AntiAlias=True)

    def tilted(target: skia.Canvas) -> None:
        target.clear(skia.ColorWHITE)
        target.translate(120, 120)
        target.rotate(30)
        target.drawRect(skia.Rect(-60, -60, 60, 60), paint(skia.Color(0, 140, 60)))

    def pair(target: skia.Canvas) -> None:
        target.clear(skia.Color(250, 235, 120))
        target.drawCircle(70, 110, 50, paint(skia.Color(200, 30, 30)))
        target.drawRect(skia.Rect(190, 85, 240, 135), paint(skia.Color(20, 60, 200)))

    def bubbles(target: skia.Canvas) -> None:
        target.clear(skia.Color(20, 20, 30))
        places = ((50, 60, 26), (140, 50, 30), (220, 80, 24), (70, 170, 32), (180, 180, 28))
        for x, y, radius in places:
            target.drawCircle(x, y, radius, paint(skia.Color(0, 200, 220)))

    canvas("skia-tilted-square", 240, 240, tilted)
    canvas("skia-circle-and-square", 280, 210, pair)
    canvas("skia-five-bubbles", 270, 240, bubbles)


# ---- matplotlib


def draw_matplotlib() -> None:
    def figure(name: str, size: tuple[float, float], colour: str, draw: object) -> None:
        made, axes = plt.subplots(figsize=size, dpi=100)
        made.patch.set_facecolor(colour)
        axes.set_position((0, 0, 1, 1))
        axes.set_xlim(0, 10 * size[0] / size[1])
        axes.set_ylim(0, 10)
        axes.axis("off")
        draw(axes)  # type: ignore[operator]
        held = io.BytesIO()
        made.savefig(held, format="png", facecolor=colour)
        plt.close(made)
        kept(name, Image.open(held).convert("RGB"))

    def write(text: str, colour: str, font: str) -> object:
        how = {"color": colour, "fontsize": 64, "fontfamily": font, "ha": "center", "va": "center"}
        return lambda axes: axes.text(0.5, 0.5, text, transform=axes.transAxes, **how)

    def hexagonal(axes: plt.Axes) -> None:
        axes.add_patch(patches.RegularPolygon((7, 3), 3, radius=2.2, color="tab:brown"))
        axes.add_patch(patches.Circle((2.3, 7.4), 1.6, color="tab:green"))

    def markers(axes: plt.Axes) -> None:
        axes.scatter([2, 5, 8, 2, 5, 8], [7, 7.5, 6.6, 3, 2.4, 3], s=1500, marker="*", color="red")
        axes.scatter([5], [5], s=1500, marker="s", color="blue")

    figure("plot-number", (2.4, 1.6), "white", write("417", "black", "DejaVu Serif"))
    figure("plot-year", (2.8, 1.4), "navy", write("2038", "white", "DejaVu Sans"))
    figure("plot-word", (3.2, 1.4), "white", write("LION", "darkred", "STIXGeneral"))
    figure("plot-triangle-and-circle", (2.4, 2.4), "white", hexagonal)
    figure("plot-markers", (2.6, 2.6), "white", markers)


# ---- Agg and Blend2D


def draw_agg() -> None:
    picture = Image.new("RGB", (220, 160), (255, 200, 215))
    canvas = aggdraw.Draw(picture)
    canvas.rectangle((60, 30, 160, 130), aggdraw.Brush("black"))
    canvas.flush()
    kept("agg-black-square", picture)
    picture = Image.new("RGB", (200, 200), (130, 130, 130))
    canvas = aggdraw.Draw(picture)
    canvas.polygon((100, 30, 175, 165, 25, 165), aggdraw.Brush("white"))
    canvas.flush()
    kept("agg-white-triangle", picture)


def draw_blend2d() -> None:
    image = blend2d.Image(210, 210)
    context = blend2d.Context(image)
    context.set_fill_style_rgba(255, 255, 255, 255)
    context.fill_all()
    context.set_fill_style_rgba(245, 160, 0, 255)
    context.fill_rect(85, 20, 40, 170)
    context.fill_rect(20, 85, 170, 40)
    kept("blend-cross", Image.fromarray(np.ascontiguousarray(image.asarray()[..., 2::-1])))


# ---- Pillow's own font, and pixels by hand


def draw_pillow() -> None:
    for name, text, colour, behind in (
        ("pillow-digit", "7", (0, 90, 0), (255, 255, 255)),
        ("pillow-word", "STOP", (255, 255, 255), (190, 10, 20)),
        ("pillow-number", "65", (255, 235, 0), (0, 0, 0)),
    ):
        picture = Image.new("RGB", (220, 140), behind)
        font = ImageFont.load_default(72)
        ImageDraw.Draw(picture).text((110, 70), text, fill=colour, font=font, anchor="mm")
        kept(name, picture)


def pixels(name: str, rows: str, colours: dict[str, tuple[int, ...]], scale: int) -> None:
    """A picture of the rows' characters, each as a block of `scale` pixels."""
    lines = rows.split()
    mode = "RGBA" if any(len(colour) == 4 for colour in colours.values()) else "RGB"
    picture = Image.new(mode, (len(lines[0]), len(lines)))
    picture.putdata([colours[character] for line in lines for character in line])
    size = (picture.width * scale, picture.height * scale)
    kept(name, picture.resize(size, Image.Resampling.NEAREST))


def draw_pixels() -> None:
    heart = """
    .............
    ..###...###..
    .#####.#####.
    .###########.
    .###########.
    .###########.
    ..#########..
    ...#######...
    ....#####....
    .....###.....
    ......#......
    .............
    """
    pixels("pixel-heart", heart, {".": (120, 200, 120), "#": (200, 0, 30)}, 16)
    pixels("pixel-heart-transparent", heart, {".": (0, 0, 0, 0), "#": (200, 0, 30, 255)}, 16)
    number = """
    .............
    .#..#...###..
    .#..#......#.
    .#..#......#.
    .####....##..
    ....#...#....
    ....#...#....
    ....#...####.
    .............
    """
    pixels("pixel-number", number, {".": (255, 255, 255), "#": (0, 0, 0)}, 14)
    blocks = """
    ..........
    .##....##.
    .##....##.
    ..........
    ..........
    .##....##.
    .##....##.
    ..........
    """
    pixels("pixel-four-squares", blocks, {".": (255, 255, 255), "#": (110, 30, 150)}, 24)


if __name__ == "__main__":
    for draw in (draw_svg, draw_cairo, draw_skia, draw_matplotlib, draw_agg, draw_blend2d,
                 draw_pillow, draw_pixels):  # fmt: skip
        draw()
