"""The demo model through the launched endpoint: what users notice if a picture goes astray."""

from __future__ import annotations

import base64
import io
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from appliance.offline import Appliance
from tests.serving.conftest import Server, serving
from tools.demo import exam, samples
from tools.demo.judging import key_words

RECIPE = ("recipe=demo", "engine.threads=1")
GREEN_BEHIND = "media.image.rgba_background=[0, 128, 0]"
RED, BLUE, GREEN, YELLOW = (220, 20, 20), (20, 40, 220), (0, 128, 0), (255, 230, 0)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
BACKGROUND, COLOUR = "What colour is the background?", "What colour is it?"
IN_ORDER = "What are the colours of the shapes, in order?"
WHICH = "Which image shows {}, first or second?"
Colour = tuple[int, int, int]
Part = dict[str, Any]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(*RECIPE) as server:
        yield server


def on(name: str, colour: Colour, behind: Colour) -> Image.Image:
    """A large shape in the middle of one colour."""
    picture = Image.new("RGBA", (samples.SIDE, samples.SIDE), (*behind, 255))
    picture.alpha_composite(samples.shape(name, colour))
    return picture.convert("RGB")


def image(picture: Image.Image, **named: str) -> Part:
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return {"type": "image_url", "image_url": {"url": url(encoded.getvalue(), "image/png")}} | named


def video(frames: Sequence[Image.Image]) -> Part:
    data = exam.encoded(frames, 12)
    return {"type": "video_url", "video_url": {"url": url(data, "video/mp4")}}


def url(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def moving(towards: str) -> list[Image.Image]:
    """A red square on white that goes a good way in a straight line, in 30 frames."""
    frames = []
    for step in range(30):
        along = 30 + 4 * step
        if towards in ("left", "up"):
            along = 30 + 4 * (29 - step)
        frame = Image.new("RGB", (196, 196), WHITE)
        corner = (along - 20, 78) if towards in ("left", "right") else (78, along - 20)
        frame.paste(RED, (*corner, corner[0] + 40, corner[1] + 40))
        frames.append(frame)
    return frames


def asking(text: str, *parts: Part) -> list[Any]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def answer(server: Server, text: str, *parts: Part, **extra: Any) -> Any:
    return server.client.chat.completions.create(
        model="demo", messages=asking(text, *parts), max_tokens=60, extra_body=extra or None
    )


def said(server: Server, text: str, *parts: Part, **extra: Any) -> str:
    return answer(server, text, *parts, **extra).choices[0].message.content


def metrics(server: Server) -> dict[str, float]:
    """Every sample that has no labels, or only the item's kind, by name."""
    with urllib.request.urlopen(server.base_url + "/metrics", timeout=5) as response:
        text = response.read().decode()
    return {
        "/".join([sample.name.removeprefix("appliance_"), *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if set(sample.labels) <= {"modality"}
    }


def risen(server: Server, before: dict[str, float], *names: str) -> list[float]:
    after = metrics(server)
    return [after.get(name, 0.0) - before.get(name, 0.0) for name in names]


MEDIA_HITS, MEDIA_MISSES = "media_cache_hits_total/image", "media_cache_misses_total/image"
TOWER_HITS, TOWER_MISSES = "encoder_cache_hits_total", "encoder_cache_misses_total"


# ---- order


def test_swapping_two_images_swaps_the_answer(server: Server) -> None:
    circle, square = image(on("circle", RED, WHITE)), image(on("square", BLUE, WHITE))
    for name, places in (("a circle", ("first", "second")), ("a square", ("second", "first"))):
        question = WHICH.format(name)
        assert places[0] in key_words(said(server, question, circle, square))
        assert places[1] in key_words(said(server, question, square, circle))


def test_images_are_told_apart_by_their_number(server: Server) -> None:
    shown = {
        "red": image(on("circle", RED, WHITE)),
        "blue": image(on("star", BLUE, YELLOW)),
        "green": image(on("square", GREEN, WHITE)),
    }
    for order in (["red", "blue", "green"], ["green", "red", "blue"]):
        parts = [shown[colour] for colour in order]
        for number, colour in zip(("first", "second", "third"), order, strict=True):
            question = f"What colour is the shape in the {number} image?"
            assert key_words(said(server, question, *parts))[-1] == colour
        assert key_words(said(server, IN_ORDER, *parts)) == order


@pytest.mark.parametrize(("towards", "back"), [("right", "left"), ("down", "up")])
def test_a_clip_in_reverse_moves_the_other_way(server: Server, towards: str, back: str) -> None:
    question = "In which direction does it move?"
    frames = moving(towards)
    assert key_words(said(server, question, video(frames))) == [towards]
    assert key_words(said(server, question, video(frames[::-1]))) == [back]
    assert key_words(said(server, question, video(moving(back)))) == [back]


def test_colours_of_a_clip_come_in_their_order(server: Server) -> None:
    red, blue = (Image.new("RGB", (140, 140), colour) for colour in (RED, BLUE))
    question = "Which colours are shown, in order?"
    assert key_words(said(server, question, video([red] * 15 + [blue] * 15))) == ["red", "blue"]
    assert key_words(said(server, question, video([blue] * 15 + [red] * 15))) == ["blue", "red"]


# ---- transparency


def two_that_differ_in_transparency() -> tuple[Image.Image, Image.Image]:
    """A red circle on yellow, and the same pixels with the yellow ones transparent."""
    opaque = on("circle", RED, YELLOW).convert("RGBA")
    clear = opaque.copy()
    clear.putalpha(samples.shape("circle", RED).getchannel("A").point(lambda a: 255 * (a > 127)))
    return opaque, clear


def test_transparency_alone_tells_two_images_apart(server: Server) -> None:
    opaque, clear = two_that_differ_in_transparency()
    assert np.array_equal(np.asarray(opaque)[..., :3], np.asarray(clear)[..., :3])
    for _ in range(2):  # the second time from the caches
        assert key_words(said(server, BACKGROUND, image(opaque))) == ["yellow"]
        assert key_words(said(server, BACKGROUND, image(clear))) == ["white"]


def test_the_recipe_decides_what_transparent_pictures_are_laid_on(server: Server) -> None:
    with Image.open(samples.FOLDER / "blue-star.png") as star:
        clear = star.copy()
    solid = on("star", BLUE, YELLOW)
    assert key_words(said(server, BACKGROUND, image(clear))) == ["white"]
    with serving(*RECIPE, GREEN_BEHIND) as other:
        assert key_words(said(other, BACKGROUND, image(clear))) == ["green"]
        assert key_words(said(other, BACKGROUND, image(solid))) == ["yellow"]
        told = said(other, "What do you see?", image(clear))
    assert key_words(told) == ["blue", "star", "green"]
    assert key_words(said(server, BACKGROUND, image(solid))) == ["yellow"]


# ---- caches


def test_a_repeated_image_is_not_prepared_again_and_is_answered_the_same(server: Server) -> None:
    star = on("star", BLUE, (250, 240, 0))  # of a shade that no other test has
    question = "What colour is the star?"
    first = metrics(server)
    before = said(server, question, image(star), cache_salt="one")
    assert risen(server, first, MEDIA_HITS, MEDIA_MISSES, TOWER_HITS, TOWER_MISSES) == [0, 1, 0, 1]
    second = metrics(server)
    again = said(server, question, image(star), cache_salt="two")  # shares no prefix
    assert risen(server, second, MEDIA_HITS, MEDIA_MISSES, TOWER_HITS, TOWER_MISSES) == [1, 0, 1, 0]
    assert again == before
    assert "blue" in key_words(before)
    other = metrics(server)
    told = said(server, question, image(on("star", RED, (250, 240, 0))), cache_salt="two")
    assert risen(server, other, MEDIA_HITS, MEDIA_MISSES, TOWER_HITS, TOWER_MISSES) == [0, 1, 0, 1]
    assert "red" in key_words(told)


def test_a_name_stands_for_its_image(server: Server) -> None:
    star, circle = on("star", RED, (245, 245, 245)), on("circle", BLUE, (245, 245, 245))
    assert key_words(said(server, COLOUR, image(star, uuid="star-1"))) == ["red"]
    assert key_words(said(server, COLOUR, image(circle, uuid="circle-1"))) == ["blue"]
    before = metrics(server)
    for name, colour in (("star-1", "red"), ("circle-1", "blue")):
        named = {"type": "image_url", "image_url": None, "uuid": name}
        assert key_words(said(server, COLOUR, named)) == [colour]
    assert risen(server, before, MEDIA_HITS, MEDIA_MISSES, TOWER_MISSES) == [2, 0, 0]
    unknown = {"type": "image_url", "image_url": None, "uuid": "heart-1"}
    with pytest.raises(openai.BadRequestError) as refused:
        said(server, COLOUR, unknown)
    assert refused.value.code == "media_cache_miss"


def test_two_questions_about_one_image_share_its_prefix(server: Server) -> None:
    shown = image(on("heart", RED, (250, 250, 250)))
    assert key_words(said(server, BACKGROUND, shown)) == ["white"]
    before = metrics(server)
    shared = answer(server, COLOUR, shown)
    (hits,) = risen(server, before, "prefix_cache_hit_tokens_total")
    details = shared.usage.prompt_tokens_details
    assert details.cached_tokens == hits
    assert details.model_dump()["image_tokens"] < hits < shared.usage.prompt_tokens
    alone = answer(server, COLOUR, shown, cache_salt="another")
    assert alone.usage.prompt_tokens_details.cached_tokens == 0
    assert alone.choices[0].message.content == shared.choices[0].message.content
    assert key_words(shared.choices[0].message.content) == ["red"]
    other = answer(server, COLOUR, image(on("heart", BLUE, (250, 250, 250))))
    assert other.usage.prompt_tokens_details.cached_tokens < details.cached_tokens
    assert key_words(other.choices[0].message.content) == ["blue"]


# ---- together, in pieces, and without a server


def mixed() -> list[tuple[str, list[Part]]]:
    circle, square = on("circle", RED, WHITE), on("square", BLUE, YELLOW)
    star, clear = on("star", GREEN, BLACK), samples.shape("triangle", RED)
    asked: list[tuple[str, list[Part]]] = [
        (text, [image(picture)])
        for picture in (circle, square, star, clear)
        for text in ("What do you see?", BACKGROUND)
    ]
    both = [image(circle), image(square)]
    asked += [(WHICH.format("a square"), both), (WHICH.format("a square"), both[::-1])]
    asked += [("How many images are there?", [*both, image(star)])]
    asked += [
        ("In which direction does it move?", [video(moving(way))]) for way in ("left", "right")
    ]
    return [*asked, ("Hello!", []), ("What do you see?", []), ("Which shapes do you know?", [])]


def test_sixteen_at_once_are_answered_as_one_at_a_time(server: Server) -> None:
    asked = mixed()
    assert len(asked) == 16

    def ask(number: int, salt: str) -> str:
        text, parts = asked[number]
        return said(server, text, *parts, cache_salt=f"{salt} {number}")

    before = metrics(server)
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda number: ask(number, "together"), range(16)))
    between = metrics(server)
    alone = [ask(number, "alone") for number in range(16)]
    assert together == alone
    assert len(set(alone)) > 10  # or they could be each other's
    (steps,) = risen(server, between, "engine_steps_total")
    assert between["engine_steps_total"] - before["engine_steps_total"] < steps / 2


def test_a_stream_says_what_the_whole_answer_says(server: Server) -> None:
    counts = []
    for text, parts in mixed()[::3]:
        stream = server.client.chat.completions.create(
            model="demo", messages=asking(text, *parts), max_tokens=60, stream=True
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        counts.append(len([piece for piece in pieces if piece]))
        assert "".join(pieces) == said(server, text, *parts)
    assert max(counts) > 1  # a server that is held up says what has come meanwhile at once


def test_a_second_question_is_answered_from_the_first_ones_picture(server: Server) -> None:
    shown = on("circle", RED, YELLOW)
    messages = asking(COLOUR, image(shown))
    first = server.client.chat.completions.create(model="demo", messages=messages, max_tokens=60)
    told = first.choices[0].message.content
    messages += [{"role": "assistant", "content": told}, {"role": "user", "content": BACKGROUND}]
    second = server.client.chat.completions.create(model="demo", messages=messages, max_tokens=60)
    assert key_words(told) == ["red"]
    assert key_words(second.choices[0].message.content) == ["yellow"]


def test_a_script_gets_what_a_client_of_the_server_gets(server: Server) -> None:
    opaque, clear = two_that_differ_in_transparency()
    told: dict[str, list[str]] = {}
    for overrides in ((), (GREEN_BEHIND,)):
        with Appliance("demo", *RECIPE[1:], *overrides) as model:
            told[" ".join(overrides)] = [
                model.chat(
                    asking(BACKGROUND, {"type": "image", "image": picture}), max_tokens=60
                )["choices"][0]["message"]["content"]
                for picture in (opaque, clear)
            ]  # fmt: skip
    assert told[""] == [said(server, BACKGROUND, image(picture)) for picture in (opaque, clear)]
    assert [key_words(text) for text in told[GREEN_BEHIND]] == [["yellow"], ["green"]]
