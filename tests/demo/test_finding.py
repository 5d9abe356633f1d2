"""The start of the decoder, seen in its attention."""

from __future__ import annotations

import random
from dataclasses import fields

import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase, Qwen2VLForConditionalGeneration

from tools.demo import batches, checkpoint, encoding, finding, marks
from tools.demo.generator import Example
from tools.demo.marks import CLASSES, COLOURS, SHAPES
from tools.demo.questions import Turn


def told(shape: int, colour: int) -> torch.Tensor:
    """Labels of one token's patches, all covered by one thing."""
    labels = torch.zeros(4, len(CLASSES), dtype=torch.long)
    labels[:, 0], labels[:, 1], labels[:, 2] = shape, colour, colour
    return labels


@pytest.fixture
def seen_and_told() -> tuple[torch.Tensor, torch.Tensor]:
    """What a tower might say of 400 tokens, linear in what lies there, and their labels."""
    torch.manual_seed(1)
    directions = torch.randn(len(SHAPES) + len(COLOURS) + 2, 256)
    labels = torch.stack(
        [
            told(random.Random(at).randrange(7), random.Random(-at).randrange(13))
            for at in range(400)
        ]
    )
    seen = torch.randn(400, 256) * 0.3
    for at, token in enumerate(labels):
        seen[at] += directions[int(token[0, 0])] + directions[len(SHAPES) + 1 + int(token[0, 1])]
    return seen, labels.flatten(0, 1)


def test_a_name_attends_to_the_tokens_that_show_it(
    tokenizer: PreTrainedTokenizerBase,
    seen_and_told: tuple[torch.Tensor, torch.Tensor],
) -> None:
    torch.manual_seed(2)
    model: Qwen2VLForConditionalGeneration = checkpoint.new_model(tokenizer).eval()
    seen, labels = seen_and_told
    fitted = batches.Batch(*[torch.zeros(0)] * (len(fields(batches.Batch)) - 1), skills=[])
    fitted.seen = labels

    def scores() -> dict[str, float]:
        """For each name: the mean score of a hit over that of a miss, in the last head."""
        found = {}
        for name, number, part in (
            *((name, number, 0) for name, number in SHAPES.items()),
            *((name, number, 1) for name, number in COLOURS.items()),
        ):
            word = tokenizer.get_vocab()[f"\u0120{name}"]
            states = torch.cat([seen[:64], model.lm_head.weight[[word]]])[None]
            # the first tokens stand in a row of a picture, the word 15 positions on
            positions = torch.full((3, 1, 65), 5)
            positions[..., -1] = 20
            model.set_attn_implementation({"text_config": "eager"})
            with torch.inference_mode():
                made = model.model.language_model(
                    inputs_embeds=states, position_ids=positions, output_attentions=True,
                    attention_mask={"full_attention": torch.zeros(1, 1, 65, 65)},
                )  # fmt: skip
            given = made.attentions[0][0, -1, -1, :64].log()
            hit = labels.view(-1, 4, len(CLASSES))[:64, 0, part] == number
            if hit.any():
                found[name] = float(given[hit].mean() - given[~hit].mean())
        return found

    before = scores()
    with torch.no_grad():
        finding.find_by_name(model, tokenizer, [(fitted, seen)])
    after = scores()
    assert len(after) > 14
    assert min(after.values()) > 1.5
    assert max(before.values()) < 0.5


def test_names_in_a_chat_are_told_what_they_name(tokenizer: PreTrainedTokenizerBase) -> None:
    star = marks.Label(SHAPES["star"], COLOURS["red"], COLOURS["red"], place=7)
    crosses = [marks.Label(SHAPES["cross"], COLOURS[name], COLOURS[name], place=3)
               for name in ("blue", "red")]  # fmt: skip
    shown = [
        marks.Marks(("white", "white"), Image.new("L", (140, 140)), list(things), [(0.5, 0.5)] * 3)
        for things in ([star], crosses)
    ]
    found = marks.found(shown)
    other = found["star"].other
    assert found["star"] == marks.Found(1, COLOURS["red"], 7, 1)
    assert found["cross"] == marks.Found(2, marks.UNLEARNED, marks.UNLEARNED, 2)
    assert found["red"] == marks.Found(2, marks.UNLEARNED, marks.UNLEARNED, marks.ELSEWHERE)
    assert found["blue"] == marks.Found(1, len(COLOURS) + SHAPES["cross"], 3, 2)
    assert found["heart"] == marks.Found(0, marks.UNLEARNED, marks.UNLEARNED, 0)
    assert other != found["blue"].other
    assert found["red cross"] == marks.Found(1, marks.UNLEARNED, 3, 2)
    assert found["blue star"].count == 0
    assert found["blue cross"] != found["cross"]
    question = "Which image shows a star, first or second? And a red cross?"
    turn = Turn("images", question, "The star is red.")
    pictures = [Image.new("RGB", (140, 140), "white")] * 2
    shown[0].middles, shown[1].middles = [(0.5, 0.5)], [(0.2, 0.2), (0.7, 0.7)]
    one = encoding.encode(
        Example("images", [[turn], [turn]], pictures, marks=shown), tokenizer, random.Random(1)
    )
    words = tokenizer.convert_ids_to_tokens(one.ids)
    told_of = {word: tuple(row) for word, row in zip(words, one.found.tolist(), strict=True)
               if max(row) != marks.UNLEARNED}  # fmt: skip
    assert told_of["\u0120star"] == tuple(found["star"])
    assert told_of["\u0120cross"] == tuple(found["red cross"])
    assert set(told_of) == {"\u0120star", "\u0120red", "\u0120cross"}
