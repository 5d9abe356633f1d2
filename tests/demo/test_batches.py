"""The training's batches, logits and updates, held against transformers and linear algebra."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tools.demo import batches, checkpoint, clip, encoding, generator, marks, muon, train
from tools.demo.generator import Example, random_example
from tools.demo.questions import Turn


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
    patches, grid = encoding.patches_of([Image.fromarray(pixels)], checkpoint.IMAGE_PIXELS)
    assert list(grid) == expected["image_grid_thw"][0].tolist()
    found = batches.normalized(patches)
    torch.testing.assert_close(found, expected["pixel_values"], rtol=0, atol=1e-5)
    turned = batches.normalized(
        encoding.patches_of([Image.fromarray(pixels[:, ::-1])], checkpoint.IMAGE_PIXELS)[0]
    )
    assert (turned - expected["pixel_values"]).abs().max() > 0.1


def examples(chats: int = 1) -> list[Example]:
    rng = random.Random(8)
    kinds = ("look", "images", "video", "talk", "video")
    return [random_example(rng, kind, 150, chats=chats) for kind in kinds]


def kinds_of(model: Qwen2VLForConditionalGeneration, ids: torch.Tensor) -> torch.Tensor:
    config = model.config
    return (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()


def grids_of(example: Example, grids: list[encoding.Grid]) -> dict[str, torch.Tensor]:
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
        nothing = marks.Marks(("white", "white"), Image.new("L", (8, 8)))
        seen = [nothing] * (generator.FRAMES // checkpoint.TEMPORAL)
        shown.append(Example("video", [[Turn("look", "What?", "It.")]], frames=frames, marks=seen))
    for example in shown:
        one = encoding.encode(example, tokenizer, rng)
        ids = torch.tensor([one.ids])
        expected, _ = model.model.get_rope_index(
            ids, kinds_of(model, ids), attention_mask=torch.ones_like(ids),
            **grids_of(example, one.grids),
        )  # fmt: skip
        assert torch.equal(torch.from_numpy(one.positions), expected[:, 0])
        if example.pictures or example.frames:  # or positions would not matter
            assert not torch.equal(expected[0], expected[2])


@pytest.mark.parametrize("chats", [1, 4])
def test_the_training_computes_the_logits_of_transformers(
    tokenizer: PreTrainedTokenizerBase, model: Qwen2VLForConditionalGeneration, chats: int
) -> None:
    shown = examples(chats)
    coded = [encoding.encode(example, tokenizer, random.Random(10)) for example in shown]
    assert chats == 1 or max(max(one.chats) for one in coded) == chats
    batch = batches.collate(coded, tokenizer.pad_token_id)
    rows = batch.labels != marks.UNLEARNED
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


def test_a_chat_does_not_see_another(
    tokenizer: PreTrainedTokenizerBase, model: Qwen2VLForConditionalGeneration
) -> None:
    (one,) = (encoding.encode(e, tokenizer, random.Random(10)) for e in examples(2)[:1])
    batch = batches.collate([one], tokenizer.pad_token_id)
    last = batch.chats == 2
    rows = last & (batch.labels != marks.UNLEARNED)
    with torch.inference_mode():
        seen = train.look(model, batch)
        before = train.logits_of(model, batch, seen, rows)
        for number, changes in ((1, False), (2, True)):
            others = batch.ids.clone()
            others[(batch.chats == number) & (batch.labels == marks.UNLEARNED)] = 300
            kept, batch.ids = batch.ids, others
            after = train.logits_of(model, batch, seen, rows)
            batch.ids = kept
            assert torch.allclose(before, after, rtol=0, atol=1e-5) is not changes


def alone(
    model: Qwen2VLForConditionalGeneration, example: Example, one: encoding.Encoded
) -> torch.Tensor:
    """transformers' logits of what is learned in each chat, by itself."""
    inputs: dict[str, torch.Tensor] = grids_of(example, one.grids)
    if one.patches:
        name = "pixel_values_videos" if example.frames else "pixel_values"
        inputs[name] = batches.normalized(np.concatenate(one.patches))
    ids, labels, chats = (torch.tensor(part) for part in (one.ids, one.labels, one.chats))
    found = []
    for chat in range(min(1, max(one.chats)), max(one.chats) + 1):
        mine = (chats == 0) | (chats == chat)
        asked = ids[mine][None]
        logits = model(
            input_ids=asked, attention_mask=torch.ones_like(asked),
            mm_token_type_ids=kinds_of(model, asked), **inputs,
        ).logits[0]  # fmt: skip
        found.append(logits[labels[mine] != marks.UNLEARNED])
    return torch.cat(found)


def test_what_is_learned_is_what_is_answered(tokenizer: PreTrainedTokenizerBase) -> None:
    for example in examples() + examples(chats=3):
        one = encoding.encode(example, tokenizer, random.Random(11))
        learned = [token for token in one.labels if token != marks.UNLEARNED]
        turns = [turn for chat in example.chats for turn in chat]
        assert tokenizer.decode(learned) == "".join(f"{turn.answer}<|im_end|>" for turn in turns)
        assert one.skills == [turn.skill for turn in turns]


def test_tokens_of_a_clip_know_the_numbers_of_their_colours(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    rng, several = random.Random(6), 0
    for _ in range(40):
        example = random_example(rng, "video", 150)
        shown = example.clip
        assert shown is not None
        coded = encoding.encode(example, tokenizer, rng)
        numbered = coded.nth[coded.places[:, 0] != marks.UNLEARNED]
        assert (coded.nth[coded.places[:, 0] == marks.UNLEARNED] == marks.UNLEARNED).all()
        assert set(numbered.flatten()) - {marks.UNLEARNED} == set(
            range(1, max(2, len(shown.colours) + 1))
        )
        if shown.filled:
            # a patch's bytes: channels, two frames, pixels; a token's are four patches
            pixels = coded.patches[0].reshape(-1, 4, 3, 2, checkpoint.PATCH**2).mean(axis=(1, 4))
            rgbs = np.asarray(shown.rgbs)
            told = rgbs[numbered - 1].transpose(0, 2, 1)
            assert np.abs(told - pixels).max() < 8
            if len(rgbs) > 1:
                several += 1
                reverse = rgbs[::-1][numbered - 1].transpose(0, 2, 1)
                assert np.abs(reverse - pixels).max() > 20
            before = coded.before[coded.places[:, 0] != marks.UNLEARNED].reshape(3, -1)
            assert (before[0] == 0).all()
            # what the pair before ends with, in its pixels
            named = {
                marks.COLOURS[name]: rgb for name, rgb in zip(shown.colours, rgbs, strict=True)
            }
            ends = pixels.reshape(3, -1, 3, 2)[:-1, ..., 1]
            said = np.array([[named[int(one)] for one in pair] for pair in before[1:]])
            assert np.abs(said - ends).max() < 8
        else:
            covered = numbered[:, 0] != marks.UNLEARNED
            assert covered.any()
            assert not covered.all()
    assert several > 3


@pytest.mark.usefixtures("one_font")
def test_a_name_in_a_chat_about_a_clip_knows_the_colour_that_follows(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    rng, followed = random.Random(8), 0
    names = {
        token: name
        for name, tokens in encoding.name_tokens(tokenizer, tuple(marks.COLOURS))
        for token in tokens
    }
    for _ in range(20):
        example = random_example(rng, "colours", 100, chats=4)
        assert example.clip is not None
        colours = example.clip.colours
        assert 3 <= len(colours) <= 4
        coded = encoding.encode(example, tokenizer, rng)
        for at, token in enumerate(coded.ids):
            name = names.get(token)
            if name is None or not coded.chats[at]:
                assert set(coded.found[at]) == {marks.UNLEARNED}
                continue
            if name not in colours:
                continue
            number = colours.index(name)
            count, following, place, found = coded.found[at]
            assert (count, place) == (marks.UNLEARNED, marks.UNLEARNED)
            assert found == number + 1
            expected = marks.COLOURS[colours[number + 1]] if number + 1 < len(colours) else 0
            assert following == expected
            followed += expected > 0
    assert followed > 20


def test_chats_are_spelled_as_the_template_spells_them(tokenizer: PreTrainedTokenizerBase) -> None:
    for example in examples(chats=2):
        one = encoding.encode(example, tokenizer, random.Random(12))
        pads = {tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
        for number, turns in enumerate(example.chats, 1):
            parts = [{"type": "image"}] * len(example.pictures)
            parts += [{"type": "video"}] * bool(example.frames)
            messages = []
            for turn in turns:
                content = [*parts, {"type": "text", "text": turn.question}]
                messages += [
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": turn.answer},
                ]
                parts = []
            whole = tokenizer.apply_chat_template(messages, tokenize=False)
            system = whole.index("<|im_start|>user")
            expected = tokenizer(whole[system:].rstrip("\n"), add_special_tokens=False)["input_ids"]
            mine = [
                token for token, chat in zip(one.ids, one.chats, strict=True) if chat in (0, number)
            ]
            merged = [t for at, t in enumerate(mine) if t not in pads or mine[at - 1] != t]
            assert merged[-len(expected) :] == expected


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
