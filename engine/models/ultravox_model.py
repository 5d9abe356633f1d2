"""Ultravox's network: Whisper's encoder, a projector over stacked frames, and a text model.

The encoder's layers and the text model are transformers' own. Names of weights are those of
Ultravox's published safetensors. Source of projector, masks and lengths: fixie-ai/ultravox,
ultravox/model/ultravox_model.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, pad, silu
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from engine.models.sound_chunks import AT_ONCE

EPSILON = 1e-6


class UltravoxConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers has no types for us
    """What config.json says, its text and audio parts written out."""

    model_type = "ultravox"
    sub_configs = {"audio_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012 - as declared upstream

    def __init__(
        self,
        audio_config: Any = None,
        text_config: Any = None,
        hidden_size: int = 4096,
        stack_factor: int = 8,
        projector_act: str = "swiglu",
        projector_ln_mid: bool = False,  # of checkpoints before 0.5, which do not say
        **others: Any,
    ) -> None:
        self.audio_config = _part(audio_config, "whisper")
        self.text_config = _part(text_config, "llama")
        self.hidden_size = hidden_size
        self.stack_factor = stack_factor
        self.projector_act = projector_act
        self.projector_ln_mid = projector_ln_mid
        super().__init__(**others)


def _part(given: Any, otherwise: str) -> Any:
    if isinstance(given, PreTrainedConfig):
        return given
    given = dict(given or {})
    return AutoConfig.for_model(given.pop("model_type", otherwise), **given)


class Tower(WhisperEncoder):  # type: ignore[misc]  # transformers has no types for us
    """Whisper's encoder for sounds shorter than 30 seconds, which it hears as long as they are."""

    def hear(self, chunks: list[torch.Tensor], lengths: list[int]) -> list[torch.Tensor]:
        """Hidden states `[width / 2, size]` of each of `chunks` `[bands, width]`, rounded up.

        Of a chunk, what lies beyond its length is attended to by nothing.
        """
        rows = [self._convolved(chunk) for chunk in chunks]
        hidden = pad_sequence(rows, batch_first=True)
        heard = torch.tensor([(length - 1) // 2 + 1 for length in lengths], device=hidden.device)
        mask = None
        if bool((heard < hidden.shape[1]).any()):
            places = torch.arange(hidden.shape[1], device=hidden.device)
            mask = (places < heard[:, None])[:, None, None]  # [chunks, 1, 1, keys]
            mask = mask.expand(-1, -1, hidden.shape[1], -1)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        hidden = self.layer_norm(hidden)
        return [states[: len(row)] for states, row in zip(hidden, rows, strict=True)]

    def _convolved(self, chunk: torch.Tensor) -> torch.Tensor:
        """Alone, so that no neighbour in a batch changes how its end is padded."""
        states = gelu(self.conv2(gelu(self.conv1(chunk[None]))))[0].T
        return (states + self.embed_positions.weight[: len(states)]).to(states.dtype)


class Projector(nn.Module):
    """Several frames side by side, normed, through a gated layer to the text model's width."""

    def __init__(self, config: UltravoxConfig) -> None:
        super().__init__()
        self.stack = config.stack_factor
        wide = config.audio_config.d_model * config.stack_factor
        self.gated = config.projector_act == "swiglu"
        middle = config.hidden_size // 2 if self.gated else config.hidden_size
        narrow = config.text_config.hidden_size
        self.ln_pre = LlamaRMSNorm(wide, EPSILON)
        self.linear_1 = nn.Linear(wide, config.hidden_size, bias=False)
        self.activation = nn.Identity() if self.gated else ACT2FN[config.projector_act]
        self.linear_2 = nn.Linear(middle, narrow, bias=False)
        between = config.projector_ln_mid
        self.ln_mid = LlamaRMSNorm(middle, EPSILON) if between else nn.Identity()
        self.ln_post = nn.Identity() if between else LlamaRMSNorm(narrow, EPSILON)

    def forward(self, stacked: torch.Tensor) -> torch.Tensor:
        """stacked `[tokens, frames * size]`; returns `[tokens, hidden]`."""
        states = self.linear_1(self.ln_pre(stacked))
        if self.gated:
            value, gate = states.chunk(2, dim=-1)
            states = silu(gate) * value
        else:
            states = self.activation(states)
        return self.ln_post(self.linear_2(self.ln_mid(states)))

    def stacked(self, states: torch.Tensor, tokens: int) -> torch.Tensor:
        """The first `tokens` stacks of `states` `[frames, size]`, the last filled up with zeros."""
        filled = pad(states, (0, 0, 0, -len(states) % self.stack))
        return filled.reshape(-1, self.stack * states.shape[1])[:tokens]


class UltravoxModel(PreTrainedModel):  # type: ignore[misc]  # transformers has no types for us
    """All parts; the text model is run by whoever runs decoders."""

    config_class = UltravoxConfig
    base_model_prefix = ""
    _supports_sdpa = True
    _no_split_modules = ["WhisperEncoderLayer"]  # noqa: RUF012 - as declared upstream

    def __init__(self, config: UltravoxConfig) -> None:
        super().__init__(config)
        self.audio_tower = Tower(config.audio_config)
        self.multi_modal_projector = Projector(config)
        self.language_model = AutoModelForCausalLM.from_config(
            config.text_config, trust_remote_code=False
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def hear(self, chunks: list[torch.Tensor], lengths: list[int]) -> list[torch.Tensor]:
        """Embeddings `[tokens, hidden]` of each of `chunks` `[bands, width]`."""
        stacks: list[torch.Tensor] = [torch.empty(0)] * len(chunks)
        by_length = sorted(range(len(chunks)), key=lambda place: chunks[place].shape[1])
        for start in range(0, len(chunks), AT_ONCE):  # of like length: less padding
            places = by_length[start : start + AT_ONCE]
            states = self.audio_tower.hear(
                [chunks[place] for place in places], [lengths[place] for place in places]
            )
            for place, heard in zip(places, states, strict=True):
                tokens = -(-lengths[place] // (2 * self.config.stack_factor))
                stacks[place] = self.multi_modal_projector.stacked(heard, tokens)
        embedded = self.multi_modal_projector(torch.cat(stacks))
        return list(embedded.split([len(stack) for stack in stacks]))
