"""The evaluation asks what it says, and counts an answer as right when it is."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from transformers import PreTrainedTokenizerBase, Qwen2VLForConditionalGeneration

from bench.exam.questions import FOREIGN, Item
from engine.models.family import VideoOptions
from engine.models.qwen2_vl import Qwen2VL
from tests.demo.blobs import Plain, blobs
from tools.demo import (
    batches,
    checkpoint,
    clip,
    encoding,
    evaluate,
    exam,
    generator,
    judging,
    reference,
    scene,
)
from tools.demo.clip import Clip
from tools.demo.evaluate import Answer
from tools.demo.generator import random_example
from tools.demo.scene import Scene, Thing


def test_intervals_are_those_of_wilson() -> None:
    for right, count in ((0, 10), (7, 10), (95, 100), (60, 60)):
        expected = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
        assert judging.interval(right, count) == pytest.approx(
            (expected.low, expected.high), abs=1e-4
        )


@pytest.mark.parametrize(
    ("question", "expected", "answer", "right"),
    [
        ("What color is it?", "It is red.", "The shape is red.", True),
        ("What color is it?", "It is red.", "It is red and blue.", False),
        ("What color is the circle?", "The circle is gray.", "It is grey", True),
        ("Is there a red star?", "Yes, there is a red star.", "Yes.", True),
        ("Is there a red star?", "No, there is no red star.", "Yes, there is a red star.", False),
        ("How many stars?", "I see 3 stars.", "Three stars.", True),
        ("How many stars?", "I see 3 stars.", "I see 2 stars.", False),
        ("Which came first, red or blue?", "Red came first.", "Blue came first.", False),
        ("Read it.", "It says STAR.", "The word is STAR.", True),
        ("Read it.", "It says STAR.", "It says a star.", False),
        ("Where is it?", "It is at the top left.", "It is at the left.", False),
        ("Hello", "Goodbye!", "Hello!", False),
        ("Describe it.", "I see a red star and a blue cross.", "I see a blue cross and a red star.",
         False),
    ],
)  # fmt: skip
def test_answers_are_compared_by_meaning(
    question: str, expected: str, answer: str, right: bool
) -> None:
    assert judging.same_meaning(answer, expected, question) is right
    assert judging.same_meaning(expected, expected, question)


def test_a_transparent_picture_is_what_it_is_laid_on() -> None:
    rng = random.Random(12)
    for chat in exam.chats(["transparent"], 6, 1, [(255, 255, 255), (0, 128, 0)]):
        behind = {"white": (255, 255, 255), "green": (0, 128, 0)}[chat.background or ""]
        assert chat.background in chat.turns[0].answer  # type: ignore[operator]
        laid = reference.opaque(chat.items[0].data, behind)
        found = blobs(laid, behind)
        assert 1 <= len(found) <= 2
        corners = [laid.getpixel(at) for at in ((0, 0), (laid.width - 1, laid.height - 1))]
        assert behind in corners
    thing = Thing("circle", "red", (200, 20, 20), 0.5, 0.5, 0.4)
    made = Scene("green", (0, 128, 0), [thing])
    picture = exam.transparent_picture(made, (200, 200), rng)
    held = io.BytesIO()
    picture.save(held, "PNG")
    laid = np.asarray(reference.opaque(held.getvalue(), made.background_rgb), dtype=int)
    drawn = np.asarray(scene.draw(made, (200, 200), Plain(0)), dtype=int)
    assert np.abs(laid - drawn).mean() < 1
    assert set(np.unique(np.asarray(picture)[..., 3])) > {0, 255}  # its edges are smooth


def test_clips_are_sampled_as_the_server_samples_them(qwen2_vl: Qwen2VL) -> None:
    made = Clip("white", (255, 255, 255), Thing("circle", "red", (220, 0, 0), 0, 0, 0.2), 1.0)
    made.direction = "right"
    for total in (24, 31, 40, 47, 48):
        frames = clip.draw(made, (64, 64), [step / (total - 1) for step in range(total)])
        taken = reference.sampled(exam.encoded(frames, 12))
        numbers = qwen2_vl.sample_frames(total, 12.0, VideoOptions(frames=generator.FRAMES))
        assert len(taken) == len(numbers) == generator.FRAMES
        for picture, number in zip(taken, numbers, strict=True):
            ours, theirs = (np.asarray(p, dtype=int) for p in (picture, frames[number]))
            assert np.abs(ours - theirs).mean() < 4
            assert np.abs(ours - np.asarray(frames[number - 3], dtype=int)).mean() > 4


@pytest.fixture
def qwen2_vl(folder: Path) -> Qwen2VL:
    return Qwen2VL(folder)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    model: Qwen2VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
) -> Path:
    """A checkpoint of fresh weights."""
    made = tmp_path_factory.mktemp("evaluate") / "checkpoint"
    checkpoint.write(model, tokenizer, made)
    return made


@pytest.mark.parametrize("kind", ["look", "images", "video", "talk"])
def test_transformers_is_asked_what_the_training_shows(
    kind: str, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    made = reference.Reference(folder)
    example = random_example(random.Random(13), kind, 150, most_turns=1)
    del example.turns[1:]
    coded = encoding.encode(example, tokenizer, Plain(0))
    items = []
    for picture in example.pictures:
        held = io.BytesIO()
        picture.save(held, "PNG")
        items.append(Item("image", held.getvalue(), "image/png"))
    if example.frames:
        frames = [frame for frame in example.frames for _ in range(5)]
        even = (example.frames[0].width // 2 * 2, example.frames[0].height // 2 * 2)
        frames = [frame.resize(even) for frame in frames]
        items.append(Item("video", exam.encoded(frames, 10), "video/mp4"))
    chat = exam.Chat(kind, tuple(items), tuple(example.turns))
    inputs = made.inputs(chat, (255, 255, 255))
    asked = coded.ids[: coded.labels.index(next(t for t in coded.labels if t >= 0))]
    assert inputs["input_ids"][0].tolist() == asked
    if coded.patches:
        modality = "video" if example.frames else "image"
        assert inputs[f"{modality}_grid_thw"].tolist() == [list(grid) for grid in coded.grids]
        expected = batches.normalized(np.concatenate(coded.patches))
        found = inputs[reference.PIXELS[modality]]
        assert (found - expected).abs().mean() < (0.1 if example.frames else 1e-6)
        assert (found.flip(0) - expected).abs().mean() > 0.1


def test_foreign_pictures_are_small_and_all_asked_about() -> None:
    asked = json.loads((FOREIGN / "questions.json").read_text())
    shown = {name for one in asked for name in one["files"]}
    files = {file.name: file.stat().st_size for file in FOREIGN.glob("*.png")}
    assert shown == set(files)
    assert len(files) >= 20
    assert max(files.values()) < 16_000
    chats = exam.foreign()
    assert {chat.background for chat in chats} == {None, "white", "black", "green", "blue"}
    backgrounds = [evaluate.colour(text) for text in evaluate.BACKGROUNDS]
    assert [exam.nearest(background) for background in backgrounds] == [
        "white", "black", "green", "blue",
    ]  # fmt: skip
    for chat in chats:
        (turn,) = chat.turns
        assert judging.key_words(turn.answer)
        for item in chat.items:
            with Image.open(io.BytesIO(item.data)) as picture:
                clear = picture.mode == "RGBA"
            assert clear or chat.background is None


def test_the_table_counts_skills_apart() -> None:
    def told(skill: str, answer: str, theirs: str | None) -> Answer:
        return Answer(skill, "look", "What colour is it?", "It is red.", answer, None, theirs)

    answers = [
        told("look", "It is red.", "It is red."), told("look", "Red", "It is blue."),
        told("look", "It is blue.", "It is blue."), told("images", "It is blue.", "It is red."),
        told(evaluate.LATER, "It is red.", None),
    ]  # fmt: skip
    header, *rows = evaluate.table(answers)
    assert len({len(row) for row in (header, *rows)}) == 1
    assert rows[0][1:4] == ["look", "3", "66.7 %"]
    assert rows[0][5:] == ["33.3 %", "33.3 %", "+33.3", "2 of 3"]
    assert rows[1][:4] == ["5", "images", "1", "0.0 %"]
    assert rows[1][6:] == ["100.0 %", "-100.0", "0 of 1"]
    assert rows[2][1:4] == [evaluate.LATER, "1", "100.0 %"]
    assert evaluate.markdown([header, *rows]).count("\n") == 5
