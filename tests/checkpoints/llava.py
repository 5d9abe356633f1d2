"""A tiny LLaVA-1.5."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints.files import (
    CLIP_MEAN,
    CLIP_STD,
    decoder_sizes,
    special_ids,
    write_generation_config,
    write_json,
    write_model,
    write_tokenizer,
)
from tests.checkpoints.tokenization import (
    sentencepiece_tokenizer,
)

# As the published LLaVA template does, this one writes a message's images before its text.
LLAVA_CHAT = """
{%- for message in messages -%}
{%- if message.role != 'system' -%}{{ message.role | upper }}: {% endif -%}
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for content in message.content if content.type == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for content in message.content if content.type == 'text' -%}{{ content.text }}{%- endfor -%}
{%- endif -%}
{{ ' ' }}
{%- endfor -%}
{%- if add_generation_prompt -%}ASSISTANT:{%- endif -%}
"""


def write_llava(folder: str | Path, seed: int = 0, dtype: str = "float32") -> Path:
    """A LLaVA-1.5: CLIP tower of 16 patches, Llama with a SentencePiece-like tokenizer."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    folder = Path(folder)
    tokenizer = sentencepiece_tokenizer(["<image>", "<pad>"])
    ids = special_ids(tokenizer, bos="<s>", eos="</s>", pad="<pad>")
    config = LlavaConfig(
        text_config={"model_type": "llama", **decoder_sizes(tokenizer, layers=3), **ids},
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "projection_dim": 32,
        },
        image_token_index=tokenizer.token_to_id("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    write_model(folder, LlavaForConditionalGeneration(config), seed, dtype)
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "image_token": "<image>",
    }
    write_tokenizer(folder, tokenizer, LLAVA_CHAT, names)
    write_generation_config(folder, tokenizer, ["</s>"], bos="<s>", pad="<pad>")
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "LlavaProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": 56},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": 56, "width": 56},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        },
    )
    return folder
