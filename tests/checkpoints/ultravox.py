"""A tiny Ultravox."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints.files import (
    decoder_sizes,
    special_ids,
    write_generation_config,
    write_model,
    write_tokenizer,
)
from tests.checkpoints.tokenization import (
    byte_level_tokenizer,
)

# As Llama 3's, which knows nothing of media: contents are text.
LLAMA3_CHAT = """
{{- bos_token -}}
{%- for message in messages -%}
<|start_header_id|>{{ message['role'] }}<|end_header_id|>

{{ message['content'] | trim }}<|eot_id|>
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start_header_id|>assistant<|end_header_id|>

{% endif -%}
"""


def write_ultravox(
    folder: str | Path,
    seed: int = 0,
    dtype: str = "float32",
    ln_mid: bool = True,
    tied: bool = False,
) -> Path:
    """An Ultravox of version 0.5's shape that hears 1.6 seconds at once, all weights in it."""
    from transformers import LlamaConfig, WhisperConfig, WhisperFeatureExtractor

    from engine.models.ultravox_model import UltravoxConfig, UltravoxModel

    folder = Path(folder)
    tokenizer = byte_level_tokenizer(
        [f"<|{name}|>" for name in ("begin_of_text", "end_of_text", "reserved_special_token_0")]
        + [f"<|{name}|>" for name in ("eot_id", "start_header_id", "end_header_id")]
    )
    ids = special_ids(tokenizer, bos="<|begin_of_text|>", eos="<|eot_id|>")
    config = UltravoxConfig(
        audio_config=WhisperConfig(
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=64,
            num_mel_bins=16,
            max_source_positions=80,
        ),
        text_config=LlamaConfig(
            **decoder_sizes(tokenizer, layers=3), **ids, tie_word_embeddings=tied
        ),
        hidden_size=96,
        stack_factor=8,
        projector_act="swiglu",
        projector_ln_mid=ln_mid,
    )
    write_model(folder, UltravoxModel(config), seed, dtype)
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    write_tokenizer(folder, tokenizer, LLAMA3_CHAT, names)
    write_generation_config(
        folder, tokenizer, ["<|eot_id|>", "<|end_of_text|>"], "<|begin_of_text|>", "<|eot_id|>"
    )
    WhisperFeatureExtractor(feature_size=16).save_pretrained(folder)
    return folder
