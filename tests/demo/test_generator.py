"""What the generator says of its pictures, held against the pixels and against transformers."""

from __future__ import annotations

import io
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from scipy import ndimage, spatial, stats
from transformers import PreTrainedTokenizerBase, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from engine.models.family import VideoOptions
from engine.models.qwen2_vl import Qwen2VL
from tools.demo import (
    batches,
    checkpoint,
    clip,
    exam,
    fonts,
    generator,
    judging,
    muon,
    palette,
    reading,
    reference,
    scene,
    shapes,
    train,
)
from tools.demo.clip import Clip
from tools.demo.generator import Example, random_example
from tools.demo.questions import Turn, about_clip, about_scene
from tools.demo.scene import Scene, Thing
from tools.demo.tokenizer import train_tokenizer

COMPARISON = re.compile(
    r"(?:(Yes|No), )?[Tt]he (.+?) is (?:not )?(?:further |the )?(\w+)(?: of)?(?: the (.+))?\."
)
ONLY_FACE = Path("the font of Pillow")


class Plain(random.Random):
    """A generator that draws neither noise, blur, gradients, outlines nor JPEG."""

    def random(self) -> float:
        return 0.99


@dataclass(slots=True)
class Blob:
    """What is seen of one thing: pixels, middle as fractions of the sides."""

    pixels: np.ndarray  # [pixels, 2], row and column
    x: float
    y: float
    rgb: np.ndarray

    @property
    def extent(self) -> float:
        """Half the greatest distance of two of its pixels."""
        hull = self.pixels[spatial.ConvexHull(self.pixels).vertices].astype(float)
        return max(spatial.distance.pdist(hull)) / 2

    @property
    def features(self) -> tuple[float, float]:
        """Area over that of the hull, and over the squared extent."""
        hull = spatial.ConvexHull(self.pixels)
        return len(self.pixels) / hull.volume, len(self.pixels) / self.extent**2


def blobs(picture: Image.Image, background: palette.Colour) -> list[Blob]:
    """Return what stands out from the background, piece by piece."""
    values = np.asarray(picture, dtype=float)
    seen = np.linalg.norm(values - background, axis=2) > palette.LEAST_CONTRAST / 2
    pieces, _ = ndimage.label(seen)
    found = []
    for number, box in enumerate(ndimage.find_objects(pieces), 1):
        pixels = np.argwhere(pieces[box] == number)
        rgb = np.median(values[box][pieces[box] == number], axis=0)
        pixels += (box[0].start, box[1].start)
        if len(pixels) > 4:
            y, x = (pixels.mean(axis=0) + 0.5) / seen.shape
            found.append(Blob(pixels, float(x), float(y), rgb))
    return found


Scenes = list[tuple[Scene, list[Blob]]]


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    """Scenes of 0 to 9 things, most of few, with what is seen of them."""
    rng, found = random.Random(20), []
    for number in range(60):
        made = scene.random_scene(rng, number % (10 if number < 20 else 5), repeat=0.5, neat=0.5)
        root = math.sqrt(made.aspect)
        picture = scene.draw(made, (round(500 * root), round(500 / root)), Plain(number))
        found.append((made, blobs(picture, made.background_rgb)))
    return found


def seen_as(made: Scene, found: list[Blob]) -> list[tuple[Thing, Blob]]:
    """Return each thing with the piece that is nearest to where it should be."""
    return [
        (thing, min(found, key=lambda blob: math.hypot(blob.x - thing.x, blob.y - thing.y)))
        for thing in made.things
    ]


def test_as_many_pieces_are_seen_as_are_counted(scenes: Scenes) -> None:
    for made, found in scenes:
        turns = [turn for turn in about_scene(made, random.Random(1)) if turn.skill == "count"]
        said = re.fullmatch(r"There (?:is|are) (\d+) shapes?\.", turns[0].answer)
        assert said is not None
        assert int(said[1]) == len(found)
        for turn in turns[1:]:
            number, name = re.fullmatch(r"There (?:is|are) (\d+) (.+)\.", turn.answer).groups()  # type: ignore[union-attr]
            named = [
                blob
                for thing, blob in seen_as(made, found)
                if name.startswith((thing.shape, f"{thing.colour} "))
            ]
            assert int(number) == len(named)


def test_things_are_where_and_in_the_colour_that_is_said(scenes: Scenes) -> None:
    places = 0
    for made, found in scenes:
        for thing, blob in seen_as(made, found):
            near = thing.radius * min(made.aspect, 1.0) * 0.2  # a heart's middle lies elsewhere
            assert abs(blob.x - thing.x) < near / made.aspect + 0.01
            assert abs(blob.y - thing.y) < near + 0.01
            assert np.abs(blob.rgb - thing.rgb).max() <= 1
            if thing.place is None:
                continue
            places += 1
            for word, value, low, high in (
                ("left", blob.x, 0, 0.4), ("right", blob.x, 0.6, 1), ("top", blob.y, 0, 0.4),
                ("bottom", blob.y, 0.6, 1),
            ):  # fmt: skip
                assert (word in thing.place.split()) == (low <= value <= high)
    assert places > 20


def test_comparisons_are_those_of_the_pixels(scenes: Scenes) -> None:
    answers = 0
    for made, found in scenes:
        seen = {}
        for thing, blob in seen_as(made, found):
            seen |= {thing.shape: blob, thing.name: blob}  # a name that is asked about is one's own
        for turn in about_scene(made, random.Random(2)):
            if turn.skill != "compare":
                continue
            answers += 1
            asked = sorted(
                (name for name in seen if re.search(rf"\bthe {name}\b", turn.question.lower())),
                key=turn.question.lower().index,
            )
            said = COMPARISON.fullmatch(turn.answer)
            assert said is not None
            word, one = said[3], seen[said[2]]
            if word == "largest":
                assert one.extent == max(blob.extent for blob in found)
                continue
            other = seen[said[4] or next(name for name in asked if name != said[2])]
            true = {
                "left": one.x < other.x, "right": one.x > other.x, "higher": one.y < other.y,
                "lower": one.y > other.y, "above": one.y < other.y, "below": one.y > other.y,
                "larger": one.extent > other.extent, "smaller": one.extent < other.extent,
            }[word]  # fmt: skip
            assert true == (said[1] != "No")
    assert answers > 40


@pytest.mark.parametrize("name", shapes.NAMES)
@pytest.mark.parametrize("angle", [0.0, 0.4, 2.0])
def test_shapes_have_the_areas_of_their_names(name: str, angle: float) -> None:
    """By geometry: how much of its hull a shape fills, and of the square of half its diameter."""
    a, b, fifth = 0.95, 0.3, math.pi / 5  # a cross's arms, long and wide
    known = {
        "circle": (1, math.pi),
        "square": (1, 2),
        "triangle": (1, math.sqrt(3)),
        "star": (0.42 / math.cos(fifth), 5 * math.sin(fifth) * 0.42 / math.sin(2 * fifth) ** 2),
        "cross": (0.694, (8 * a * b - 4 * b * b) / (a * a + b * b)),
        "heart": (0.92, 180 * math.pi / 16**2),  # the curve's area and width
    }
    thing = Thing(name, "red", (220, 20, 20), 0.5, 0.5, 0.4, angle)
    made = Scene("white", (255, 255, 255), [thing])
    (blob,) = blobs(scene.draw(made, (300, 300), Plain(0)), made.background_rgb)
    solidity, area = blob.features
    nearest = min(
        known, key=lambda other: math.hypot(known[other][0] - solidity, known[other][1] - area)
    )
    assert nearest == name
    assert (solidity, area) == pytest.approx(known[name], abs=0.13)


def moved(made: Clip) -> tuple[float, float]:
    """How far the thing's middle moves from the first to the last frame, right and down."""
    first, last = (
        max(blobs(frame, made.background_rgb), key=lambda blob: len(blob.pixels))
        for frame in clip.draw(made, (160, 120), [0.0, 1.0])
    )
    return last.x - first.x, last.y - first.y


def test_clips_move_where_they_say() -> None:
    rng, asked = random.Random(4), 0
    while asked < 24:
        made = clip.random_clip(rng)
        if made.direction is None:
            continue
        asked += 1
        right, down = moved(made)
        towards = ("left" if right < 0 else "right") if abs(right) > abs(down) else None
        towards = towards or ("up" if down < 0 else "down")
        for turn in about_clip(made, rng):
            if turn.skill == "direction":
                assert re.search(rf"\b{towards}\b", turn.answer)
        made.start, made.end = made.end, made.start
        assert moved(made) == pytest.approx((-right, -down), abs=0.02)


def test_clips_show_the_colours_that_they_say_in_order() -> None:
    rng, asked = random.Random(5), 0
    while asked < 24:
        made = clip.random_clip(rng)
        if not made.colours:
            continue
        asked += 1
        shown: list[tuple[int, ...]] = []
        for frame in clip.draw(made, (80, 80), [step / 29 for step in range(30)]):
            middle = made.thing
            at = (40, 40) if middle is None else (round(middle.x * 80), round(middle.y * 80))
            rgb = frame.getpixel(at)
            if not shown or shown[-1] != rgb:
                shown.append(rgb)  # type: ignore[arg-type]
        assert shown == list(made.rgbs)
        names = dict(zip(made.rgbs, made.colours, strict=True))
        for turn in about_clip(made, rng):
            words = judging.key_words(turn.answer)
            if turn.answer.endswith(("shown.",)):
                assert words == [str(len(shown))]
            elif turn.skill == "distinct colours":
                assert words == [names[rgb] for rgb in shown]
            else:
                both = [name for name in made.colours if name in turn.question.lower().split() or
                        f"{name}?" in turn.question.lower()]  # fmt: skip
                assert words[0] == (both[0] if "first" in turn.answer else both[-1])


@pytest.fixture
def one_font(monkeypatch: pytest.MonkeyPatch) -> None:
    """The font that Pillow brings along, on whatever machine."""
    monkeypatch.setattr(fonts, "faces", lambda held_out: [ONLY_FACE])
    monkeypatch.setattr(fonts, "face", lambda file, size: ImageFont.load_default(size))


@pytest.mark.usefixtures("one_font")
@pytest.mark.parametrize("many", [False, True])
def test_pages_show_every_character_that_is_read(many: bool) -> None:
    rng = random.Random(6)
    for _ in range(12):
        page = reading.random_page(rng, many=many)
        text = "".join(line.text for line in page.lines)
        root = math.sqrt(page.aspect)
        picture = reading.draw(page, (round(700 * root), round(700 / root)), Plain(0))
        found = blobs(picture, page.background_rgb)
        assert len(found) == len(text)  # a letter in capitals, like a digit, is one piece
        width, height = picture.size
        for blob in found:
            low, high = blob.pixels.min(axis=0), blob.pixels.max(axis=0)
            assert min(low) >= 1 or page.turned
            assert (high[0] <= height - 2 and high[1] <= width - 2) or page.turned
        rows = [line.y for line in page.lines]
        assert rows == sorted(rows) or many


@pytest.mark.usefixtures("one_font")
@pytest.mark.parametrize("kind", generator.KINDS)
def test_a_seed_gives_the_same_example_again(kind: str) -> None:
    def looks(example: Example) -> tuple[list[Turn], list[bytes]]:
        return example.turns, [image.tobytes() for image in example.pictures + example.frames]

    first, again, other = (
        looks(random_example(random.Random(seed), kind, 64)) for seed in (31, 31, 32)
    )
    assert first == again
    assert first != other


def test_words_and_fonts_that_are_held_out_are_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not set(reading.WORDS["held out"]) & set(reading.WORDS["training"])
    rng = random.Random(7)
    shown = {reading.random_text(rng, "word", True) for _ in range(300)}
    assert shown <= set(reading.WORDS["held out"])
    font = ImageFont.load_default(20).path
    assert isinstance(font, io.BytesIO)
    names = ["Lato-Bold", "Roboto-Regular", *(f"{name}-Bold" for name in fonts.HELD_OUT)]
    for name in names:
        (tmp_path / f"{name}.ttf").write_bytes(font.getvalue())
    monkeypatch.setattr(fonts, "FOLDERS", (tmp_path,))
    fonts.faces.cache_clear()
    sides = [{file.stem for file in fonts.faces(held_out)} for held_out in (False, True)]
    fonts.faces.cache_clear()
    assert sides == [{"Lato-Bold", "Roboto-Regular"}, set(names[2:])]


# ---- against transformers


def processor() -> Qwen2VLImageProcessorPil:
    least, most = checkpoint.IMAGE_PIXELS
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": least, "longest_edge": most}, patch_size=checkpoint.PATCH,
        merge_size=checkpoint.MERGE, temporal_patch_size=checkpoint.TEMPORAL, resample=3,
        image_mean=checkpoint.MEAN, image_std=checkpoint.DEVIATION,
    )  # fmt: skip


@pytest.mark.parametrize("size", [(140, 140), (90, 90), (400, 300), (120, 260), (73, 31)])
def test_patches_are_those_of_transformers(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    expected = processor()(Image.fromarray(pixels), return_tensors="pt")
    patches, grid = batches.patches_of([Image.fromarray(pixels)], checkpoint.IMAGE_PIXELS)
    assert list(grid) == expected["image_grid_thw"][0].tolist()
    found = batches.normalized(patches)
    torch.testing.assert_close(found, expected["pixel_values"], rtol=0, atol=1e-5)
    turned = batches.normalized(
        batches.patches_of([Image.fromarray(pixels[:, ::-1])], checkpoint.IMAGE_PIXELS)[0]
    )
    assert (turned - expected["pixel_values"]).abs().max() > 0.1


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[PreTrainedTokenizerBase]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fonts, "faces", lambda held_out: [ONLY_FACE])
        patched.setattr(fonts, "face", lambda file, size: ImageFont.load_default(size))
        yield train_tokenizer(examples=80)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> Qwen2VLForConditionalGeneration:
    torch.manual_seed(0)
    made = checkpoint.new_model(tokenizer).eval()
    with torch.no_grad():  # fresh weights say nearly the same of everything
        for value in made.parameters():
            if value.ndim > 1:
                value.mul_(3)
    return made


def examples() -> list[Example]:
    rng = random.Random(8)
    return [random_example(rng, kind, 150) for kind in ("look", "images", "video", "talk", "video")]


def kinds_of(model: Qwen2VLForConditionalGeneration, ids: torch.Tensor) -> torch.Tensor:
    config = model.config
    return (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()


def grids_of(example: Example, grids: list[batches.Grid]) -> dict[str, torch.Tensor]:
    modality = "video" if example.frames else "image"
    return {f"{modality}_grid_thw": torch.tensor(grids)} if grids else {}


def test_positions_are_those_of_transformers(
    tokenizer: PreTrainedTokenizerBase, model: Qwen2VLForConditionalGeneration
) -> None:
    rng = random.Random(9)
    wide = [clip.Clip("white", (255, 255, 255), None, aspect) for aspect in (0.4, 1, 16 / 9, 3)]
    shown = examples()
    for made in wide:
        frames = clip.draw(made, (round(90 * made.aspect), 90), [0.0] * generator.FRAMES)
        shown.append(Example("video", [Turn("look", "What?", "It.")], frames=frames))
    for example in shown:
        one = batches.encode(example, tokenizer, rng)
        ids = torch.tensor([one.ids])
        expected, _ = model.model.get_rope_index(
            ids, kinds_of(model, ids), attention_mask=torch.ones_like(ids),
            **grids_of(example, one.grids),
        )  # fmt: skip
        assert torch.equal(torch.from_numpy(one.positions), expected[:, 0])
        if example.pictures or example.frames:  # or positions would not matter
            assert not torch.equal(expected[0], expected[2])


def test_the_training_computes_the_logits_of_transformers(
    tokenizer: PreTrainedTokenizerBase, model: Qwen2VLForConditionalGeneration
) -> None:
    shown = examples()
    coded = [batches.encode(example, tokenizer, random.Random(10)) for example in shown]
    batch = batches.collate(coded, [e.kind for e in shown], tokenizer.pad_token_id)
    rows = batch.labels != batches.UNLEARNED
    with torch.inference_mode():
        found = train.logits_of(model, batch, train.look(model, batch), rows)
        expected = [alone(model, example, one) for example, one in zip(shown, coded, strict=True)]
    theirs = torch.cat(expected)
    assert found.shape == theirs.shape
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-3)
    other = batch.positions.clone()
    other[1:] = other[:1]
    batch.positions = other
    with torch.inference_mode():
        wrong = train.logits_of(model, batch, train.look(model, batch), rows)
    assert (wrong - theirs).abs().max() > 0.05


def alone(
    model: Qwen2VLForConditionalGeneration, example: Example, one: batches.Encoded
) -> torch.Tensor:
    """transformers' logits of what is learned in one chat, by itself."""
    ids = torch.tensor([one.ids])
    inputs = {"mm_token_type_ids": kinds_of(model, ids)} | grids_of(example, one.grids)
    if one.patches:
        name = "pixel_values_videos" if example.frames else "pixel_values"
        inputs[name] = batches.normalized(np.concatenate(one.patches))
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[0]
    return logits[torch.tensor(one.labels) != batches.UNLEARNED]


def test_what_is_learned_is_what_is_answered(tokenizer: PreTrainedTokenizerBase) -> None:
    for example in examples():
        one = batches.encode(example, tokenizer, random.Random(11))
        learned = [token for token in one.labels if token != batches.UNLEARNED]
        assert tokenizer.decode(learned) == "".join(
            f"{turn.answer}<|im_end|>" for turn in example.turns
        )


# ---- the optimizer and the evaluation


@pytest.mark.parametrize("shape", [(2, 32, 80), (1, 96, 40), (3, 64, 64)])
def test_updates_are_made_nearly_orthogonal(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    matrices = torch.randn(shape)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    assert values.max() / values.min() > 1.5
    turned = left.mT @ muon.orthogonal(matrices) @ right.mT
    kept = torch.diagonal(turned, dim1=1, dim2=2)
    assert kept.min() > 0.3
    assert kept.max() < 1.3
    torch.testing.assert_close(turned, torch.diag_embed(kept), rtol=0, atol=1e-3)


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
        ("How many stars?", "There are 3 stars.", "Three stars.", True),
        ("How many stars?", "There are 3 stars.", "There are 2 stars.", False),
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
def qwen2_vl(
    tmp_path: Path, model: Qwen2VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> Qwen2VL:
    checkpoint.write(model, tokenizer, tmp_path)
    return Qwen2VL(tmp_path)
