"""Decoders without media: Llama, Qwen2, Qwen3, Gemma 3, all transformers' as they are."""

from __future__ import annotations

from typing import Any, ClassVar

from engine.models.family import Family
from engine.models.text_defaults import GEMMA3


class Text(Family):
    """A plain causal language model."""

    architectures: ClassVar[tuple[str, ...]] = (
        "LlamaForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Gemma3ForCausalLM",
    )

    def text_config(self) -> dict[str, Any]:
        if self.config.get("model_type") == "gemma3_text":
            return GEMMA3 | self.config
        return super().text_config()
