"""Tiny random checkpoints whose heads FlashInfer has kernels for, without tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from bench.random_weights import randomise

HEAD_DIM = 64  # the least that FlashInfer has kernels for
HEADS = 4
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
DECODER = {
    "vocab_size": 640,
    "hidden_size": HEAD_DIM * HEADS,
    "intermediate_size": 128,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    **IDS,
}


def write_tiny(family: str, folder: Path) -> Path:
    """A checkpoint of one of `FAMILIES`: weights and configuration; equal ones every time."""
    config = FAMILIES[family]()
    model = getattr(transformers, config.architectures[0])(config)
    randomise(model, seed=0)
    model.save_pretrained(folder)
    if family in PROCESSORS:
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[family]))
    return folder


def _llama() -> Any:
    return transformers.LlamaConfig(
        **DECODER, num_hidden_layers=3, architectures=["LlamaForCausalLM"]
    )


def _qwen3() -> Any:
    return transformers.Qwen3Config(
        **DECODER, num_hidden_layers=3, architectures=["Qwen3ForCausalLM"]
    )


def _qwen2_vl() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}
    return transformers.Qwen2VLConfig(
        architectures=["Qwen2VLForConditionalGeneration"],
        text_config={**DECODER, "num_hidden_layers": 4, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": DECODER["hidden_size"],
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=2,
        video_token_id=3,
        vision_start_token_id=4,
        vision_end_token_id=5,
        tie_word_embeddings=False,
    )


def _gemma3() -> Any:
    window, everything = "sliding_attention", "full_attention"
    return transformers.Gemma3Config(
        architectures=["Gemma3ForConditionalGeneration"],
        text_config={
            **DECODER,
            "num_hidden_layers": 4,
            "query_pre_attn_scalar": 24,
            "sliding_window": 12,
            "layer_types": [window, window, everything, window],
            "rope_parameters": {
                window: {"rope_type": "default", "rope_theta": 1e4},
                everything: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            },
        },
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
        mm_tokens_per_image=16,  # more than the windows reach back
        image_token_index=2,
        boi_token_index=3,
        eoi_token_index=4,
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "qwen3": _qwen3,
    "qwen2_vl": _qwen2_vl,
    "gemma3": _gemma3,
}
PROCESSORS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "patch_size": 14,
        "merge_size": 2,
        "min_pixels": 4 * 28 * 28,
        "max_pixels": 64 * 28 * 28,
    },
    "gemma3": {"size": {"height": 56, "width": 56}},
}
