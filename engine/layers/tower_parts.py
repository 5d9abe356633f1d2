"""What layers of media towers are made of, whatever their model calls it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.activations import (
    GELUActivation,
    GELUTanh,
    NewGELUActivation,
    QuickGELUActivation,
    SiLUActivation,
)
from transformers.modeling_layers import GradientCheckpointingLayer


@dataclass(slots=True, frozen=True)
class Parts:
    """Norm, attention of all to all and norm, two products with an activation between."""

    first_norm: nn.LayerNorm
    qkv: Sequence[nn.Linear]  # one for all three, or three
    output: nn.Linear
    second_norm: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear
    activation: nn.Module
    heads: int
    scale: float  # of scores

    @property
    def sizes(self) -> tuple[Any, ...]:
        """What layers of one tower have in common."""
        name = self.activation_name
        weight = self.output.weight
        return weight.shape, len(self.up.weight), self.heads, self.scale, name, weight.dtype

    @property
    def activation_name(self) -> str | None:
        """As `engine.native.library.ACTIVATIONS` has it; None for one that is not there."""
        module = self.activation
        if isinstance(module, GELUTanh | NewGELUActivation):
            return "gelu_tanh"
        if isinstance(module, QuickGELUActivation):
            return "quick_gelu"
        if isinstance(module, nn.GELU):
            return "gelu" if module.approximate == "none" else "gelu_tanh"
        if isinstance(module, GELUActivation):
            return "gelu"
        return "silu" if isinstance(module, nn.SiLU | SiLUActivation) else None


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a layer of a transformer."""
    return isinstance(module, GradientCheckpointingLayer)


def parts_of(layer: Any) -> Parts | None:
    """The parts of a tower's layer; None of one that is not known."""
    make = KNOWN.get(type(layer).__name__)
    return None if make is None else make(layer)


def _of_picture(layer: Any) -> Parts:
    attention, mlp = layer.self_attn, layer.mlp
    return Parts(
        layer.layer_norm1,
        (attention.q_proj, attention.k_proj, attention.v_proj),
        attention.out_proj,
        layer.layer_norm2,
        mlp.fc1,
        mlp.fc2,
        mlp.activation_fn,
        attention.num_heads,
        attention.head_dim**-0.5,
    )


def _of_sound(layer: Any) -> Parts:
    attention = layer.self_attn
    return Parts(
        layer.self_attn_layer_norm,
        (attention.q_proj, attention.k_proj, attention.v_proj),
        attention.out_proj,
        layer.final_layer_norm,
        layer.fc1,
        layer.fc2,
        layer.activation_fn,
        attention.num_heads,
        attention.head_dim**-0.5,
    )


def _of_patches(layer: Any) -> Parts:
    attention, mlp = layer.attn, layer.mlp
    return Parts(
        layer.norm1,
        (attention.qkv,),
        attention.proj,
        layer.norm2,
        mlp.fc1,
        mlp.fc2,
        mlp.act,
        attention.num_heads,
        attention.scaling,
    )


KNOWN = {
    "CLIPEncoderLayer": _of_picture,
    "SiglipEncoderLayer": _of_picture,
    "WhisperEncoderLayer": _of_sound,
    "Qwen2VLVisionBlock": _of_patches,
}
