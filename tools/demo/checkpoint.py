"""The demo checkpoint: a small Qwen2-VL, and the files that transformers expects beside it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from tools.demo import chat
from tools.demo.generator import FRAMES

PATCH, MERGE, TEMPORAL = 14, 2, 2
# Every picture is scaled to about 140 by 140 pixels, every frame to about 84 by 84. The bounds are
# a little apart, so that rounding to whole patches never falls to the next smaller one.
IMAGE_PIXELS = (138 * 138, 142 * 142)
FRAME_PIXELS = (82 * 82, 98 * 98)
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, as Qwen2-VL's
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def new_model(tokenizer: PreTrainedTokenizerBase) -> Qwen2VLForConditionalGeneration:
    """Return the model with fresh weights."""
    vocabulary = tokenizer.get_vocab()
    special = {name: vocabulary[f"<|{name}|>"] for name in ("im_end", "endoftext")}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 256,
            "intermediate_size": 640,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                # A picture is 5 tokens wide. Columns turn the slowest pairs of a head, and with the
                # usual base of 10,000 all five would look the same.
                "rope_theta": 64.0,
                "mrope_section": [2, 15, 15],
            },
            "bos_token_id": special["endoftext"],
            "eos_token_id": special["im_end"],
            "pad_token_id": special["endoftext"],
        },
        vision_config={
            "depth": 5,
            "embed_dim": 192,
            "num_heads": 3,
            "hidden_size": 256,
            "mlp_ratio": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
        },
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    look_at_neighbours(model.model.visual)
    notice_changes(model.model.visual.patch_embed.proj.weight)
    return model


# What the heads of the tower look at first: (rows down, columns right) of their own patch.
NEIGHBOURS = (
    (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1), (0, 2), (0, -2),
    (2, 0), (-2, 0), (0, 0), (0, 0), (0, 0),
)  # fmt: skip
SHARPNESS = 6.0
FASTEST = 4  # pairs of an axis that turn fast enough to tell neighbours apart


@torch.no_grad()
def look_at_neighbours(tower: Any) -> None:
    """Give the tower a start as a convolution has one: every head looks at one neighbour.

    A transformer finds neighbourhoods only after very many pictures. Rotated, the biases of query
    and key score a patch by its distance alone: equal in the pairs (i, i + half) of a head, with
    the query's turned on by the neighbour's offset, they score that neighbour highest.
    """
    neighbours = iter(NEIGHBOURS)
    for block in tower.blocks:
        attention, width = block.attn, block.attn.proj.in_features
        heads = attention.num_heads
        half = width // heads // 2
        query, key, value = attention.qkv.bias.view(3, heads, 2 * half)
        for head in range(heads):
            for axis, offset in enumerate(next(neighbours)):
                for pair in range(FASTEST):
                    turn = offset * 10000 ** (-pair / (half // 2))
                    at = axis * (half // 2) + pair
                    query[head, at] = SHARPNESS * math.cos(turn)
                    query[head, at + half] = SHARPNESS * math.sin(turn)
                    key[head, at] = SHARPNESS
        value.zero_()
        depth = (2 * len(tower.blocks)) ** -0.5
        nn.init.normal_(attention.qkv.weight[2 * width :], std=width**-0.5)
        nn.init.normal_(block.mlp.fc1.weight, std=width**-0.5)
        nn.init.normal_(attention.proj.weight, std=depth * width**-0.5)
        nn.init.normal_(block.mlp.fc2.weight, std=depth * block.mlp.fc2.in_features**-0.5)


@torch.no_grad()
def notice_changes(weight: torch.Tensor, share: float = 1.0) -> None:
    """Let every channel of the first layer, `weight` `[channels, colours, frames, rows, columns]`,
    answer to what changes between its two frames, too.

    Of a picture both frames are the same, and what is added to one half of the weights and taken
    from the other tells nothing. In a clip it is the change of lightness over the patch: its mean,
    and its slope to the right and down, in random shares. `share` weighs it against what is there.
    """
    channels, colours, _, rows, columns = weight.shape
    down, right = (torch.linspace(-1.5, 1.5, sides) for sides in (rows, columns))
    plain = torch.ones(rows, columns)
    patterns = torch.stack([plain, down[:, None] * plain, right * plain])
    mixed = torch.einsum("cp,prk->crk", torch.randn(channels, len(patterns)), patterns)
    # a patch of one shade moves a channel by the sum of its weights: as much as that moves it
    shades = weight.sum(dim=(1, 2, 3, 4)).std() / (colours * rows * columns)
    change = (share * shades * mixed)[:, None]
    weight[:, :, 0] += change
    weight[:, :, 1] -= change


def write(
    model: Qwen2VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Write the checkpoint in bfloat16 with tokenizer, template and processor settings.

    Its config.json says float32, as the model is: a CPU computes in that, as it is evaluated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors keeps others from reading what ships in a wheel
    tokenizer.save_pretrained(folder)
    text = model.config.text_config
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": TEMPORAL,
        "image_mean": MEAN,
        "image_std": DEVIATION,
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    files = {
        "preprocessor_config.json": settings | _bounds(IMAGE_PIXELS),
        "video_preprocessor_config.json": settings
        | _bounds(FRAME_PIXELS)
        | {
            "video_processor_type": "Qwen2VLVideoProcessor",
            "num_frames": FRAMES,
            "do_sample_frames": False,
        },
        "generation_config.json": {
            "do_sample": False,
            "eos_token_id": [text.eos_token_id, text.pad_token_id],
            "pad_token_id": text.pad_token_id,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(chat.TEMPLATE, encoding="utf-8")


def _bounds(pixels: tuple[int, int]) -> dict[str, object]:
    least, most = pixels
    return {
        "size": {"shortest_edge": least, "longest_edge": most},
        "min_pixels": least,
        "max_pixels": most,
    }
