from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from engine.memory.checkpoint import read_checkpoint
from engine.models.llava import Llava
from engine.models.loader import load_model
from tests.engine.models.pictures import media_item, picture, processed, tower_inputs

SIZES = [
    (56, 56), (1, 1), (2, 3), (57, 90), (640, 480), (333, 1000), (100, 101), (55, 56), (56, 200),
]  # fmt: skip


@pytest.fixture(scope="module")
def processor(llava_folder: Path) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil.from_pretrained(llava_folder)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_those_of_the_transformers_processor(
    size: tuple[int, int], llava: Llava, processor: Any
) -> None:
    image = picture(*size)
    ours = processed(llava, image)["pixel_values"]
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(900, 60), (61, 1234), (3, 500), (4000, 7)])
def test_a_long_picture_is_resized_only_where_it_is_kept(
    size: tuple[int, int], llava: Llava, processor: Any
) -> None:
    image = picture(*size)
    ours = processed(llava, image)["pixel_values"]
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    one_level = 1 / 255 / min(processor.image_std)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=one_level * 1.01)


def test_a_strip_takes_no_more_memory_than_its_crop(llava: Llava) -> None:
    assert llava.preprocess_image(Image.new("RGB", (1_000_000, 1)))["pixels"].shape == (
        1, 56, 56, 3,
    )  # fmt: skip


def test_pixels_of_a_mirrored_picture_differ(llava: Llava, processor: Any) -> None:
    image = picture(640, 480)
    ours = processed(llava, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    theirs = processor(image, return_tensors="pt")
    assert (ours["pixel_values"] - theirs["pixel_values"]).abs().max() > 0.1


@pytest.mark.parametrize("size", [(300, 411), (90, 33), (40, 40)])
@pytest.mark.parametrize(
    ("processor_class", "options"),
    [
        (CLIPImageProcessorPil, {}),
        (CLIPImageProcessorPil, {"size": {"height": 40, "width": 70}, "do_center_crop": False}),
        (CLIPImageProcessorPil, {"size": {"shortest_edge": 30}, "crop_size": 45}),
        (LlavaImageProcessorPil, {"do_pad": True, "size": {"shortest_edge": 56}, "crop_size": 56}),
        (CLIPImageProcessorPil, {"do_resize": False, "crop_size": {"height": 31, "width": 64}}),
    ],
)
def test_settings_of_the_checkpoint_are_followed(
    size: tuple[int, int],
    processor_class: Any,
    options: dict[str, Any],
    llava_folder: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text((llava_folder / "config.json").read_text())
    processor = processor_class(**options)
    processor.save_pretrained(tmp_path)
    image = picture(*size)
    ours = processed(Llava(tmp_path), image)["pixel_values"]
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_embeddings_of_a_batch_equal_those_of_each_image_alone(
    llava: Llava, llava_model: Any
) -> None:
    items = [media_item(llava, picture(*size)) for size in [(56, 56), (640, 480), (50, 300)]]
    with torch.inference_mode():
        ours = llava.encode(llava_model, items)
        inputs = [tower_inputs(llava, item) for item in items]
        alone = [llava_model.get_image_features(**one).pooler_output[0] for one in inputs]
    for item, embedding, expected in zip(items, ours, alone, strict=True):
        assert embedding.shape == (item.length, 64)
        torch.testing.assert_close(embedding, expected, rtol=0, atol=1e-4)
    assert (ours[0] - alone[1]).abs().max() > 0.1


def test_positions_count_up(llava: Llava) -> None:
    positions, offset = llava.positions([5] * 30, [media_item(llava, picture(9, 9), start=3)])
    assert positions.tolist() == [list(range(30))]
    assert offset == 0


def test_a_published_config_may_leave_out_llama_defaults(
    llava_folder: Path, tmp_path: Path
) -> None:
    from transformers import LlavaConfig

    config = json.loads((llava_folder / "config.json").read_text())
    config["text_config"] = {"model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = Llava(tmp_path).text_config()
    theirs = LlavaConfig.from_pretrained(tmp_path).text_config.to_dict()
    assert ours == {name: theirs[name] for name in ours}


@pytest.mark.parametrize(
    ("looked_at", "layers"),
    [(-2, 2), (2, 2), (-1, 3), (3, 3), (-3, 1), (-4, 1), ([-2], 2), ([1, -3], 1), ([-4, -1], 3)],
)
def test_layers_behind_the_last_that_is_looked_at_are_not_loaded(
    looked_at: int | list[int], layers: int, llava_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(llava_folder, tmp_path, dirs_exist_ok=True)
    config = LlavaConfig.from_pretrained(llava_folder, vision_feature_layer=looked_at)
    theirs = LlavaForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_model(str(tmp_path), "float32", "cpu", ("image",)).model
    tower, projector = ours.model.vision_tower, ours.model.multi_modal_projector
    assert len(tower.encoder.layers) == layers
    pixels, other = torch.randn(2, 3, 56, 56), [-4] if layers > 1 else [-1]
    other = other[0] if isinstance(looked_at, int) else other * len(looked_at)
    with torch.inference_mode():
        found = ours.get_image_features(pixels).pooler_output
        expected = theirs.get_image_features(pixels).pooler_output
        others = theirs.get_image_features(pixels, vision_feature_layer=other).pooler_output
    assert torch.equal(torch.cat(found), torch.cat(expected))
    assert not torch.equal(torch.cat(others), torch.cat(expected))
    counted = sum(weight.numel() for weight in (*tower.parameters(), *projector.parameters()))
    assert read_checkpoint(tmp_path).tower_parameters == counted


@pytest.mark.parametrize(
    "odd",
    [
        {"vision_feature_layer": 4},
        {"vision_feature_layer": True},
        {"vision_feature_layer": "-2"},
        {"vision_feature_layer": [-2, None]},
        {"vision_config": {"model_type": "siglip_vision_model", "num_hidden_layers": 3}},
        {"vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 0}},
        {"vision_config": {"model_type": "clip_vision_model"}},
    ],
    ids=str,
)
def test_no_layer_is_left_out_where_it_is_unclear(
    odd: dict[str, Any], llava_folder: Path, tmp_path: Path
) -> None:
    config = json.loads((llava_folder / "config.json").read_text())
    name = "model.vision_tower.vision_model.encoder.layers.2.mlp.fc1.weight"
    for folder, values, unread in (("plain", {}, True), ("odd", odd, False)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config | values))
        assert Llava(tmp_path / folder).unread(name) == unread
    assert not Llava(tmp_path / "plain").unread(name.replace("layers.2", "layers.1"))
    assert not Llava(tmp_path / "plain").unread("model.language_model.layers.2.mlp.up_proj.weight")
