"""A tiny Qwen2-VL."""

from __future__ import annotations

import json
from pathlib import Path

from tests.checkpoints.files import (
    CLIP_MEAN,
    CLIP_STD,
    QWEN_NAMES,
    decoder_sizes,
    special_ids,
    write_generation_config,
    write_json,
    write_model,
    write_tokenizer,
)
from tests.checkpoints.tokenization import (
    qwen_tokenizer,
)

QWEN_VL_CHATML = """
{%- macro part(content) -%}
{%- if content.type in ('image', 'image_url') or 'image' in content or 'image_url' in content -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif content.type == 'video' or 'video' in content -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in content -%}
{{ content.text }}
{%- endif -%}
{%- endmacro -%}
{%- if messages[0].role != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for content in message.content -%}{{ part(content) }}{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def write_qwen2_vl(
    folder: str | Path, seed: int = 0, dtype: str = "float32", flat: bool = False
) -> Path:
    """A Qwen2-VL; `flat` writes config.json as published checkpoints have it, on one level."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    folder = Path(folder)
    tokenizer = qwen_tokenizer()
    config = Qwen2VLConfig(
        text_config={
            **decoder_sizes(tokenizer, layers=4),
            **special_ids(tokenizer, bos="<|endoftext|>", eos="<|im_end|>"),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2, 3, 3],
            },
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=tokenizer.token_to_id("<|image_pad|>"),
        video_token_id=tokenizer.token_to_id("<|video_pad|>"),
        vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
        vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    write_model(folder, Qwen2VLForConditionalGeneration(config), seed, dtype)
    if flat:
        _flatten_qwen2_vl_config(folder)
    write_tokenizer(folder, tokenizer, QWEN_VL_CHATML, QWEN_NAMES)
    write_generation_config(folder, tokenizer, ["<|im_end|>", "<|endoftext|>"])
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
            "min_pixels": 4 * 28 * 28,
            "max_pixels": 64 * 28 * 28,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        },
    )
    return folder


def _flatten_qwen2_vl_config(folder: Path) -> None:
    path = folder / "config.json"
    nested = json.loads(path.read_text())
    text = nested.pop("text_config")
    rope = text.pop("rope_parameters")
    text.pop("layer_types", None)
    text.pop("model_type")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    write_json(path, text | nested)
