"""Decoders without media: Llama, Qwen2, Qwen3, Gemma 3, all transformers' as they are."""

from __future__ import annotations

from typing import ClassVar

from engine.models.family import Family


class Text(Family):
    """A plain causal language model."""

    architectures: ClassVar[tuple[str, ...]] = (
        "LlamaForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Gemma3ForCausalLM",
    )
