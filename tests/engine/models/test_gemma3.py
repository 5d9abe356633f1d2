from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from engine.errors import ModelUnsupported
from engine.memory.checkpoint import read_checkpoint
from engine.models.gemma3 import Gemma3
from tests.engine.models.pictures import media_item, picture, processed, tower_inputs

SIZES = [(56, 56), (1, 1), (2, 3), (57, 90), (640, 480), (333, 1000), (2000, 31)]


@pytest.fixture(scope="module")
def processor(gemma3_folder: Path) -> Gemma3ImageProcessorPil:
    return Gemma3ImageProcessorPil.from_pretrained(gemma3_folder)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_those_of_the_transformers_processor(
    size: tuple[int, int], gemma3: Gemma3, processor: Any
) -> None:
    image = picture(*size)
    ours = processed(gemma3, image)["pixel_values"]
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    other = processor(picture(*size, seed=1), return_tensors="pt")["pixel_values"]
    assert (ours - other).abs().max() > 0.05  # control


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": {"height": 40, "width": 70}, "resample": 3},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
        {"do_normalize": False},
        {"do_rescale": False},
    ],
)
def test_settings_of_the_checkpoint_are_followed(
    options: dict[str, Any], gemma3_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((gemma3_folder / "config.json").read_text())
    processor = Gemma3ImageProcessorPil(**options)
    processor.save_pretrained(tmp_path)
    image = picture(300, 411)
    ours = processed(Gemma3(tmp_path), image)["pixel_values"]
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("option", [{"do_pan_and_scan": True}, {"do_resize": False}])
def test_what_would_take_other_crops_is_refused(
    option: dict[str, bool], gemma3_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((gemma3_folder / "config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(option))
    with pytest.raises(ModelUnsupported, match="whole and resized"):
        Gemma3(tmp_path)


def test_embeddings_of_a_batch_equal_those_of_each_image_alone(
    gemma3: Gemma3, gemma3_model: Any
) -> None:
    items = [media_item(gemma3, picture(*size)) for size in [(56, 56), (640, 480), (50, 300)]]
    with torch.inference_mode():
        ours = gemma3.encode(gemma3_model, items)
        inputs = [tower_inputs(gemma3, item) for item in items]
        alone = [gemma3_model.get_image_features(**one).pooler_output[0] for one in inputs]
    for item, embedding, expected in zip(items, ours, alone, strict=True):
        assert embedding.shape == (item.length, 64)
        torch.testing.assert_close(embedding, expected, rtol=0, atol=1e-4)
    assert (ours[0] - alone[1]).abs().max() > 0.1


def test_a_published_config_leaves_out_what_transformers_knows(
    gemma3_folder: Path, tmp_path: Path
) -> None:
    """As google/gemma-3-4b-it's config.json has it; sizes are those that transformers takes."""
    from transformers import Gemma3Config

    config = json.loads((gemma3_folder / "config.json").read_text())
    config.pop("mm_tokens_per_image")
    config.pop("tie_word_embeddings", None)
    config["text_config"] = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = Gemma3Config.from_pretrained(tmp_path)
    text = theirs.text_config.to_dict()
    family = Gemma3(tmp_path)
    for name, value in family.text_config().items():
        if name != "rope_scaling":
            assert value == text[name], name
    assert family.image_tokens(9, 9) == theirs.mm_tokens_per_image
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    checkpoint = read_checkpoint(tmp_path)
    assert (checkpoint.heads, checkpoint.kv_heads) == (
        text["num_attention_heads"],
        text["num_key_value_heads"],
    )
    assert (checkpoint.head_dim, checkpoint.positions) == (
        text["head_dim"],
        text["max_position_embeddings"],
    )
    assert checkpoint.vocabulary == text["vocab_size"]
    assert checkpoint.tied == theirs.tie_word_embeddings
    assert family.most_tokens("image", 9) == theirs.mm_tokens_per_image
