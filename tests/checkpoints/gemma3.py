"""A tiny Gemma 3, with a tower and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tests.checkpoints.files import (
    decoder_sizes,
    special_ids,
    write_generation_config,
    write_json,
    write_model,
    write_tokenizer,
)
from tests.checkpoints.tokenization import (
    gemma_tokenizer,
)

GEMMA_EMBEDDINGS = 0.2  # which Gemma multiplies by the root of its width, and also decodes with

# As the published Gemma 3 template does, this one trims texts and lets users and models alternate.
GEMMA_CHAT = """
{%- set first = namespace(prefix='') -%}
{{ bos_token }}
{%- if messages[0].role == 'system' -%}
{%- set given = messages[0].content -%}
{%- set first.prefix = (given if given is string else given[0].text) + '\n\n' -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
{{- first.prefix if loop.first -}}
{%- if message.content is string -%}
{{ message.content | trim }}
{%- else -%}
{%- for item in message.content -%}
{{ '<start_of_image>' if item.type == 'image' else item.text | trim }}
{%- endfor -%}
{%- endif -%}
{{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""


def write_gemma3_text(folder: str | Path, seed: int = 0, dtype: str = "float32") -> Path:
    """A Gemma 3 of text alone: windows in three layers of four, capped logits."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    folder = Path(folder)
    tokenizer = gemma_tokenizer()
    config = Gemma3TextConfig(**_gemma3_decoder(tokenizer), final_logit_softcapping=6.0)
    write_model(folder, Gemma3ForCausalLM(config), seed, dtype, GEMMA_EMBEDDINGS)
    _write_gemma3_files(folder, tokenizer)
    return folder


def write_gemma3(folder: str | Path, seed: int = 0, dtype: str = "float32") -> Path:
    """A Gemma 3: pictures of 16 tokens, more than its windows reach back."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    folder = Path(folder)
    tokenizer = gemma_tokenizer()
    config = Gemma3Config(
        text_config=_gemma3_decoder(tokenizer),
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 7,
            "vision_use_head": False,
        },
        mm_tokens_per_image=16,
        boi_token_index=tokenizer.token_to_id("<start_of_image>"),
        eoi_token_index=tokenizer.token_to_id("<end_of_image>"),
        image_token_index=tokenizer.token_to_id("<image_soft_token>"),
    )
    write_model(folder, Gemma3ForConditionalGeneration(config), seed, dtype, GEMMA_EMBEDDINGS)
    _write_gemma3_files(folder, tokenizer)
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Gemma3ImageProcessor",
            "processor_class": "Gemma3Processor",
            "do_convert_rgb": None,
            "do_normalize": True,
            "do_pan_and_scan": None,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_seq_length": 16,
            "image_std": [0.5, 0.5, 0.5],
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": 56, "width": 56},
        },
    )
    write_json(
        folder / "processor_config.json",
        {"image_seq_length": 16, "processor_class": "Gemma3Processor"},
    )
    return folder


def _gemma3_decoder(tokenizer: Tokenizer) -> dict[str, Any]:
    window, everything = "sliding_attention", "full_attention"
    return {
        **decoder_sizes(tokenizer, layers=4),
        **special_ids(tokenizer, bos="<bos>", eos="<eos>", pad="<pad>"),
        "query_pre_attn_scalar": 24,
        "sliding_window": 12,
        "layer_types": [window, window, everything, window],
        "rope_parameters": {
            window: {"rope_type": "default", "rope_theta": 1e4},
            everything: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        },
    }


def _write_gemma3_files(folder: Path, tokenizer: Tokenizer) -> None:
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    write_tokenizer(
        folder,
        tokenizer,
        GEMMA_CHAT,
        {
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            **named,
        },
    )
    write_generation_config(folder, tokenizer, ["<eos>", "<end_of_turn>"], "<bos>", "<pad>")
