"""Models of real and of tiny shapes with random weights, made where they run; no hub, no files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from engine.core import Engine
from engine.models.loader import LoadedModel, Progress, as_loaded
from engine.models.registry import family_for
from engine.options import EngineOptions
from engine.running.platform import Platform

PAGE_SIZE = 16
VOCABULARY = 152064
QWEN_IDS = {
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
TINY_IDS = {name: index + 3 for index, name in enumerate(QWEN_IDS)}


@dataclass(slots=True, frozen=True)
class Shape:
    """Sizes of a Qwen2-VL; see the published config.json of the model it is named after."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    sections: tuple[int, int, int]
    vision_depth: int
    vision_hidden: int
    vision_heads: int
    ids: dict[str, int]

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied with, the head's included."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate
        return self.layers * layer + self.hidden * self.vocabulary

    def kv_bytes_per_token(self, itemsize: int = 2) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize


QWEN2_VL_2B = Shape(
    "Qwen2-VL-2B",
    hidden=1536,
    intermediate=8960,
    layers=28,
    heads=12,
    kv_heads=2,
    vocabulary=151936,
    tied=True,
    sections=(16, 24, 24),
    vision_depth=32,
    vision_hidden=1280,
    vision_heads=16,
    ids=QWEN_IDS,
)
QWEN2_VL_7B = Shape(
    "Qwen2-VL-7B",
    hidden=3584,
    intermediate=18944,
    layers=28,
    heads=28,
    kv_heads=4,
    vocabulary=VOCABULARY,
    tied=False,
    sections=(16, 24, 24),
    vision_depth=32,
    vision_hidden=1280,
    vision_heads=16,
    ids=QWEN_IDS,
)
TINY = Shape(
    "tiny",
    hidden=128,
    intermediate=256,
    layers=2,
    heads=2,
    kv_heads=1,
    vocabulary=512,
    tied=False,
    sections=(8, 12, 12),
    vision_depth=2,
    vision_hidden=64,
    vision_heads=2,
    ids=TINY_IDS,
)


def write_folder(shape: Shape, folder: Path) -> Path:
    """config.json and preprocessor_config.json, all that a model without weights has."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "tie_word_embeddings": shape.tied,
        "dtype": "bfloat16",
        **shape.ids,
        "text_config": {
            "model_type": "qwen2_vl_text",
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "vocab_size": shape.vocabulary,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "bos_token_id": shape.ids["bos_token_id"],
            "eos_token_id": shape.ids["eos_token_id"],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": list(shape.sections),
            },
        },
        "vision_config": {
            "depth": shape.vision_depth,
            "embed_dim": shape.vision_hidden,
            "hidden_size": shape.hidden,
            "num_heads": shape.vision_heads,
            "mlp_ratio": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }
    processor = {"patch_size": 14, "merge_size": 2, "min_pixels": 3136, "max_pixels": 1003520}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def random_model(folder: str, dtype: torch.dtype, device: torch.device) -> Any:
    """The model of a folder without weights, on the device, with weights that keep numbers sane."""
    config = transformers.AutoConfig.from_pretrained(folder)
    architecture = getattr(transformers, family_for(folder).config["architectures"][0])
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = architecture(config)
    finally:
        torch.set_default_dtype(before)
    model.to(dtype).tie_weights()
    return with_random_weights(model)


def random_text_model(shape: Shape, dtype: torch.dtype, device: torch.device) -> Any:
    """transformers' own text model of the same sizes, for it to generate with."""
    config = transformers.Qwen2Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        bos_token_id=shape.ids["bos_token_id"],
        eos_token_id=shape.ids["eos_token_id"],
    )
    with torch.device(device):
        model = transformers.Qwen2ForCausalLM(config)
    return with_random_weights(model.to(dtype))


def with_random_weights(model: Any) -> Any:
    """Weights of a size that keeps activations near one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.02)
            else:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    return model.eval()


def load_random(
    folder: str,
    dtype: str,
    device: str,
    modalities: tuple[str, ...],
    progress: Progress,
    vision_attention: str = "sdpa",
) -> LoadedModel:
    """`engine.models.loader.load_model` for a folder without weights."""
    model = random_model(folder, getattr(torch, dtype), torch.device(device))
    return as_loaded(family_for(folder), model, vision_attention)


def engine_for(folder: Path, platform: Platform, **changes: Any) -> Engine:
    """An engine with random weights and room for what is measured."""
    settings: dict[str, Any] = {
        "model_path": str(folder),
        "dtype": "bfloat16",
        "device": platform.device.type,
        "threads": 1,
        "page_size": PAGE_SIZE,
        "pages": 256,
        "max_len": 2048,
        "max_tokens_per_step": 1024,
        "max_sequences": 8,
        "prefix_cache": False,
        "encoder_cache_bytes": 0,
        "modalities": ("image",),
        "graphs": True,
        "prefill_attention": "auto",
    }
    options = EngineOptions(**(settings | changes))
    return Engine(options, platform=platform, load=load_random)
