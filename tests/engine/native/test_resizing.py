"""Pictures in another size, to the last bit as torch has them for transformers' processors."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from engine.native.loading import LibraryUnusable
from engine.native.resizing import resized
from tests.engine.native.tampered import LIBRARY, copied, library_of, with_one_variant

Pixels = NDArray[np.uint8]
Size = tuple[int, int]  # width and height

CHECKOUT = Path(__file__).parents[3]
MODES = {
    True: ("bicubic", Image.Resampling.BICUBIC),
    False: ("bilinear", Image.Resampling.BILINEAR),
}
SIZES: list[tuple[Size, Size]] = [
    ((64, 48), (32, 24)),
    ((64, 48), (128, 96)),
    ((97, 31), (45, 89)),
    ((1, 1), (5, 7)),
    ((1, 90), (4, 3)),
    ((90, 1), (4, 3)),
    ((2, 3), (1, 1)),
    ((301, 203), (1, 1)),
    ((1201, 5), (3, 5)),
    ((5, 1201), (5, 3)),
    ((3, 2), (331, 229)),
    ((40, 30), (40, 61)),
    ((40, 30), (61, 30)),
    ((40, 30), (40, 30)),
    ((33, 33), (32, 34)),
]
OUTSIDE = """
import resource, sys
from pathlib import Path
import numpy as np
from engine.native.resizing import resized
pixels, file = np.zeros((20_000, 100, 3), np.uint8), Path(sys.argv[1])
resized(pixels[:8], 10_000, 1, cubic=True, file=file)
lines = Path("/proc/self/status").read_text().splitlines()
held = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
resource.setrlimit(resource.RLIMIT_DATA, (held + (100 << 20),) * 2)
try:
    resized(pixels, 10_000, 1, cubic=True, file=file)
except MemoryError as refused:
    print(refused, "torch" in sys.modules)
"""


@pytest.fixture(scope="module", params=["of this processor", "plain"])
def library(
    request: pytest.FixtureRequest, built: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The library as it runs here, and as it does where there are no vectors of its own."""
    if request.param != "plain":
        return built
    return changed(tmp_path_factory.mktemp("plain"), "if (runs_avx2()) ", "if (0) ")


def changed(folder: Path, before: str, after: str) -> Path:
    if LIBRARY in os.environ:
        pytest.skip("it is compiled already")
    sources = copied(folder, ("resize.c", before, after))
    with pytest.MonkeyPatch.context() as patch:
        with_one_variant(patch, sources)
        return library_of(patch, sources, folder, ("-O1",))


def pixels_of(size: Size, seed: int, *, harsh: bool = False) -> Pixels:
    """Noise; `harsh` of black and white, which a filter overshoots."""
    random_bytes = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return np.where(random_bytes < 128, 0, 255).astype(np.uint8) if harsh else random_bytes


def by_torch(pixels: Pixels, size: Size, *, cubic: bool) -> Pixels:
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    found = torch.nn.functional.interpolate(
        planes, (size[1], size[0]), mode=MODES[cubic][0], antialias=True
    )
    return found[0].permute(1, 2, 0).numpy()


def by_pillow(pixels: Pixels, size: Size, *, cubic: bool) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize(size, MODES[cubic][1]))


@pytest.mark.parametrize("cubic", [True, False])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_pictures_are_those_of_torch(before: Size, after: Size, cubic: bool, library: Path) -> None:
    for harsh in (False, True):
        pixels = pixels_of(before, sum(before), harsh=harsh)
        found = resized(pixels, *after, cubic=cubic, file=library)
        assert np.array_equal(found, by_torch(pixels, after, cubic=cubic))


@pytest.mark.parametrize("cubic", [True, False])
def test_pictures_of_any_sizes_are_those_of_torch(cubic: bool, library: Path) -> None:
    """Pillow's own, by weights of 32 bits, are others: to see the difference takes equal bits."""
    draw = random.Random(7)
    others = 0
    for seed in range(200):
        before, after = (
            tuple(draw.randint(1, draw.choice((9, 70, 260))) for _ in range(2)) for _ in range(2)
        )
        pixels = pixels_of(before, seed, harsh=bool(seed % 2))
        found = resized(pixels, *after, cubic=cubic, file=library)
        assert np.array_equal(found, by_torch(pixels, after, cubic=cubic)), (before, after)
        others += not np.array_equal(found, by_pillow(pixels, after, cubic=cubic))
    assert others > 50


def test_weights_that_are_rounded_otherwise_are_noticed(tmp_path: Path, built: Path) -> None:
    other = changed(tmp_path, "value < 0 ? value - 0.5 : value + 0.5", "value + 0.5")
    pixels = pixels_of((301, 203), 1)
    expected = by_torch(pixels, (112, 84), cubic=True)
    assert np.array_equal(resized(pixels, 112, 84, cubic=True, file=built), expected)
    assert not np.array_equal(resized(pixels, 112, 84, cubic=True, file=other), expected)


def test_what_are_no_pixels_is_refused(built: Path) -> None:
    good = pixels_of((8, 6), 1)
    for wrong in (
        good.astype(np.int8),
        good.astype(np.float32),
        good[0],
        good[None],
        good[..., :2],
        np.concatenate([good, good], axis=2),
        good[::2],
        good[:, ::2],
        good[..., ::-1],
        np.asfortranarray(good),
        good[:0],
        good[:, :0],
    ):
        with pytest.raises(ValueError, match="without gaps"):
            resized(wrong, 4, 4, cubic=True, file=built)
    for size in ((0, 4), (4, 0), (-1, 4)):
        with pytest.raises(ValueError, match="no picture"):
            resized(good, *size, cubic=True, file=built)


def test_without_the_library_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(LibraryUnusable, match="was not built"):
        resized(pixels_of((8, 6), 1), 4, 4, cubic=True, file=tmp_path / "libappliance.so")


def test_memory_that_is_not_there_is_an_error_and_torch_not_needed(built: Path) -> None:
    if LIBRARY in os.environ:
        pytest.skip("a sanitizer's memory has no such bound")
    command = [sys.executable, "-c", OUTSIDE, str(built)]
    ran = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert ran.stdout == "no memory to resize a picture False\n", ran.stderr
