"""Numbers that a checkpoint sets, checked by name before anything is computed of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.models.documents import CheckpointBroken, optional_document

WHOLE = {  # from and to: far beyond what is published, and far below what exhausts a machine
    "audio_latency_block_size": (0, 1 << 20),
    "crop_size": (1, 1 << 14),
    "d_model": (1, 1 << 20),
    "decoder_attention_heads": (1, 1 << 16),
    "decoder_ffn_dim": (1, 1 << 24),
    "decoder_layers": (0, 4096),
    "depth": (0, 4096),
    "embed_dim": (1, 1 << 20),
    "encoder_attention_heads": (1, 1 << 16),
    "encoder_ffn_dim": (1, 1 << 24),
    "encoder_layers": (0, 4096),
    "feature_size": (1, 1 << 12),
    "head_dim": (1, 1 << 14),
    "height": (1, 1 << 16),
    "hidden_size": (1, 1 << 20),
    "hop_length": (1, 1 << 16),
    "image_size": (1, 1 << 14),
    "intermediate_size": (1, 1 << 24),
    "longest_edge": (1, 1 << 40),
    "max_frames": (1, 1 << 20),
    "max_pixels": (1, 1 << 40),
    "max_position_embeddings": (1, 1 << 31),
    "max_source_positions": (1, 1 << 20),
    "max_target_positions": (1, 1 << 31),
    "max_video_tokens": (1, 1 << 31),
    "merge_size": (1, 64),
    "min_frames": (1, 1 << 20),
    "min_pixels": (1, 1 << 40),
    "mm_tokens_per_image": (1, 1 << 20),
    "n_fft": (2, 1 << 16),
    "num_attention_heads": (1, 1 << 16),
    "num_channels": (1, 64),
    "num_frames": (1, 1 << 20),
    "num_heads": (1, 1 << 16),
    "num_hidden_layers": (0, 4096),
    "num_key_value_heads": (1, 1 << 16),
    "num_layers": (0, 4096),
    "num_mel_bins": (1, 1 << 12),
    "num_projector_layers": (0, 4096),
    "patch_size": (1, 4096),
    "projection_dim": (1, 1 << 20),
    "resample": (0, 5),
    "sampling_rate": (1000, 1 << 20),
    "shortest_edge": (1, 1 << 40),
    "sliding_window": (0, 1 << 31),
    "spatial_merge_size": (1, 64),
    "spatial_patch_size": (1, 4096),
    "stack_factor": (1, 1 << 10),
    "temporal_patch_size": (1, 64),
    "vocab_size": (1, 1 << 24),
    "width": (1, 1 << 16),
}
POSITIVE = ("fps", "image_std", "layer_norm_eps", "mlp_ratio", "rms_norm_eps", "rope_theta")
FINITE = ("dither", "image_mean", "query_pre_attn_scalar", "rescale_factor")
LARGEST = 1e30
PARTS = ("text_config", "vision_config", "audio_config")
DICTS = (*PARTS, "rope_scaling", "rope_parameters")
TEXTS = ("hidden_act", "model_type", "projector_act", "vision_feature_select_strategy")
SIZED = ("crop_size", "size")  # a number, or an object of numbers


def settings_of(path: Path, part: str | None = None) -> dict[str, Any]:
    """A processor's settings, or the named part of them; empty where the checkpoint has none.

    Raises CheckpointBroken for a file that is no such thing.
    """
    content: Any = optional_document(path)
    if part is not None:
        content = content.get(part) or {}
        if not isinstance(content, dict):
            raise CheckpointBroken(f"{path}: {part} must be an object")
    check_settings(content, path)
    return content


def check_settings(content: dict[str, Any], path: Path) -> None:
    """Raise CheckpointBroken for a known number or part that has another type or no sane value."""
    for owner in _objects(content, path):
        for name, value in owner.items():
            if value is None:
                continue
            reason = _fault(name, value)
            if reason is not None:
                raise CheckpointBroken(f"{path}: {name} must be {reason}, not {_shown(value)}")


def _objects(content: dict[str, Any], path: Path) -> Iterator[dict[str, Any]]:
    yield content
    for name in (*PARTS, *SIZED):
        inner = content.get(name)
        if isinstance(inner, dict):
            yield from _objects(inner, path)


def _fault(name: str, value: Any) -> str | None:
    if name in DICTS:
        return None if isinstance(value, dict) else "an object"
    if name in TEXTS:
        return None if isinstance(value, str) else "a text"
    if name in SIZED and isinstance(value, dict):
        return None  # its numbers are looked at by name
    if name == "size":
        name = "image_size"
    if name in WHOLE:
        low, high = WHOLE[name]
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole and low <= value <= high else f"a whole number from {low} to {high}"
    if name in POSITIVE or name in FINITE:
        each = isinstance(value, list) and name in ("image_mean", "image_std")
        numbers = value if each else [value]
        if len(numbers) not in (1, 3) or not all(map(_is_number, numbers)):
            return "a number, or three" if each else "a number"
        if name in POSITIVE and min(numbers) <= 0:
            return "above 0"
    if name.startswith("do_") and not isinstance(value, bool):
        return "true or false"
    return None


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and abs(value) <= LARGEST


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) > 1 << 64:
        return "a number that large"
    return repr(value)[:60]
