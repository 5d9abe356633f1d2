"""The pictures of the README are what their names say, and what the script draws."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageChops

from tools.demo import samples

CHECKOUT = Path(__file__).resolve().parents[2]


def test_the_pictures_are_those_that_the_script_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = samples.FOLDER
    monkeypatch.setattr(samples, "FOLDER", tmp_path)
    assert samples.main() == 0
    for drawn in sorted(tmp_path.iterdir()):
        with Image.open(drawn) as ours, Image.open(kept / drawn.name) as shipped:
            assert ours.mode == shipped.mode
            difference = ImageChops.difference(ours.convert("RGBA"), shipped.convert("RGBA"))
            assert max(high for _, high in difference.getextrema()) <= 2
        assert (kept / drawn.name).stat().st_size < 8192


def test_the_circle_is_red_on_white_and_the_star_blue_on_nothing() -> None:
    with Image.open(samples.FOLDER / "red-circle.png") as circle:
        assert circle.mode == "RGB"
        assert circle.getpixel((128, 128)) == samples.RED
        assert circle.getpixel((5, 5)) == samples.WHITE
    with Image.open(samples.FOLDER / "blue-star.png") as star:
        assert star.mode == "RGBA"
        assert star.getpixel((128, 128)) == (*samples.BLUE, 255)
        assert star.getpixel((5, 5))[3] == 0


@pytest.mark.parametrize("text", ["README.md", "recipes/recipe/demo.yaml"])
def test_the_pictures_that_are_asked_about_are_there(text: str) -> None:
    words = (CHECKOUT / text).read_text().replace('"', " ").replace(")", " ").split()
    named = [word for word in words if word.startswith("docs/images/")]
    assert all((CHECKOUT / name).is_file() for name in named)
    assert named or text == "README.md"
