"""Questions to the demo model, a trained one: a wrong step anywhere shows in its answers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from tokenizers import Tokenizer

from bench.gpu_checks import load_plainly, shuffle_pages
from bench.reference import Recorder, engine_options, greedy, prompt_with_images
from engine.core import Engine
from engine.request import Request
from engine.running.platform import CpuPlatform, Platform

FOLDER = Path(__file__).parents[1] / "recipes" / "demo"
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square")
QUESTIONS = ("What is in the picture?", "What colour is the background?")
MOST_TOKENS = 40
AT_ONCE = 7  # fewer than there are questions: they join and leave


class Demo:
    """The same questions to a device and to the CPU; answers are token ids by request."""

    def __init__(self, platform: Platform, dtype: str) -> None:
        """`dtype` is the device's; the CPU computes in float32."""
        self._platform = platform
        self._dtype = dtype
        self._tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))

    def on_cpu(self) -> dict[str, list[int]]:
        return self._answers(CpuPlatform(), "float32", shuffled=False, threads=8)

    def on_device(self, *, shuffled: bool = False, **options: Any) -> dict[str, list[int]]:
        """With `shuffled` the pages of all batches are wrong."""
        return self._answers(self._platform, self._dtype, shuffled=shuffled, **options)

    def requests(self) -> list[Request]:
        made = [
            self._request(f"text {place}", text, [])
            for place, text in enumerate(("Hello!", "What can you do?", "Who are you?"))
        ]
        pictures = itertools.product(SHAPES, COLOURS, QUESTIONS)
        for shape, colour, question in pictures:
            behind = COLOURS[(COLOURS.index(colour) + 1) % len(COLOURS)]
            shown = [draw(shape, colour, behind)]
            made.append(self._request(f"{colour} {shape}: {question}", question, shown))
        both = [draw("circle", "red", "white"), draw("square", "blue", "white")]
        made.append(self._request("two", "Which colours are in the pictures?", both))
        return made

    def _request(self, name: str, question: str, pictures: list[Image.Image]) -> Request:
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        end = "<|im_end|>\n<|im_start|>assistant\n"
        parts: list[list[int] | Image.Image] = [self._ids(system)]
        for picture in pictures:
            parts += [self._ids("<|vision_start|>"), picture, self._ids("<|vision_end|>")]
        ids, media = prompt_with_images(FOLDER, [*parts, self._ids(question + end)])
        return Request(name, ids, greedy(MOST_TOKENS, ignore_eos=False), media)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _answers(
        self, platform: Platform, dtype: str, *, shuffled: bool, **options: Any
    ) -> dict[str, list[int]]:
        settings = {"dtype": dtype, "max_len": 1024, "max_tokens_per_step": 256, "pages": 256}
        settings |= {"max_sequences": AT_ONCE}
        engine = Engine(
            engine_options(FOLDER, **(settings | options)), platform=platform, load=load_plainly
        )
        if shuffled:
            shuffle_pages(engine)
        recorder = Recorder(engine)
        recorder.run(*self.requests())
        return {name: tokens for (name, _), tokens in recorder.tokens.items()}


def same(some: dict[str, list[int]], others: dict[str, list[int]]) -> int:
    """How many answers are equal, to the last token."""
    return sum(answer == others[name] for name, answer in some.items())


def draw(shape: str, colour: str, behind: str, size: tuple[int, int] = (168, 140)) -> Image.Image:
    """One shape in the middle."""
    picture = Image.new("RGB", size, behind)
    draw = ImageDraw.Draw(picture)
    left, top = size[0] // 2 - 34, size[1] // 2 - 34
    box = (left, top, left + 68, top + 68)
    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=colour)
    return picture
