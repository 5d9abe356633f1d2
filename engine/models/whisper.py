"""Whisper: half a minute of sound at a time, attended to across by a decoder of text."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engine.models.documents import CheckpointBroken
from engine.models.family import Family, StateSizes, stay
from engine.models.item_tensors import check_length, fitting
from engine.models.log_mel import LogMel, sound_options
from engine.models.sound_chunks import AT_ONCE
from engine.models.text_defaults import WHISPER
from engine.request import MediaItem

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from engine.attention.backend import CrossLayers
    from engine.models.family import Arrays, Upload

START = "<|startoftranscript|>"
STRIDE = 2  # of the encoder's convolutions


class Whisper(Family):
    """Whisper of every size, tokens and their positions being the decoder's alone.

    An item is one window of sound, as long as the encoder's context. It has no placeholders: its
    states stand beside the tokens.
    """

    architectures: ClassVar[tuple[str, ...]] = ("WhisperForConditionalGeneration",)
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    tower_prefixes: ClassVar[tuple[str, ...]] = ("encoder.",)

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.config = WHISPER | self.config
        self.states = int(self.config["max_source_positions"])
        self.context = STRIDE * self.states  # frames
        self.log_mel = LogMel(sound_options(self.folder), int(self.config["num_mel_bins"]))
        if self.log_mel.bands != int(self.config["num_mel_bins"]):
            raise CheckpointBroken(
                f"{folder}: its encoder hears {self.config['num_mel_bins']} bands, and its "
                f"preprocessor_config.json makes {self.log_mel.bands}"
            )

    def text_config(self) -> dict[str, Any]:
        """The decoder's sizes by the names that decoders have."""
        config = self.config
        return config | {
            "hidden_size": config["d_model"],
            "intermediate_size": config["decoder_ffn_dim"],
            "num_hidden_layers": config["decoder_layers"],
            "num_attention_heads": config["decoder_attention_heads"],
            "num_key_value_heads": config["decoder_attention_heads"],
            "max_position_embeddings": config["max_target_positions"],
            "hidden_act": config["activation_function"],
        }

    def state_sizes(self) -> StateSizes:
        heads = int(self.config["decoder_attention_heads"])
        return StateSizes(
            page=self.states,
            pages=1,
            layers=int(self.config["decoder_layers"]),
            heads=heads,
            kv_heads=heads,
            head_dim=int(self.config["d_model"]) // heads,
        )

    def most_tokens(self, modality: str, max_len: int) -> int:
        return max_len

    def tower_places(self, modality: str, max_len: int, tokens: int) -> int:
        return self.states * max(1, min(AT_ONCE, tokens // self.states))

    def tower_width(self, modality: str) -> tuple[int, int]:
        return int(self.config["d_model"]), int(self.config["encoder_ffn_dim"])

    def placeholder(self, modality: str) -> str:
        """The token that begins a transcript: an item has none of its own among the tokens."""
        if modality != "audio":
            raise KeyError(modality)
        return START

    def audio_rate(self) -> int:
        return self.log_mel.rate

    @property
    def most_samples(self) -> int:
        """Samples of one window."""
        return self.context * self.log_mel.hop

    def item_states(self, modality: str) -> int:
        return self.states

    def audio_tokens(self, samples: int) -> int:
        """Its states: none of them stands among the tokens."""
        return self.states

    def preprocess_audio(self, samples: NDArray[np.float32]) -> Arrays:
        """`features` `[bands, frames]`, float32, 100 frames a second: of a window at least.

        And how many `samples` there were, `[1]`. As Whisper's extractor has them: what is shorter
        than a window ends in silence, and of what is longer the last frame is left out unless it
        is filled.
        """
        missing = self.most_samples - len(samples)
        if missing >= 0:
            features = self.log_mel.spectrogram(np.pad(samples, (0, missing)))
        else:
            features = self.log_mel.spectrogram(samples, len(samples) // self.log_mel.hop)
        return {"features": features, "samples": np.array([len(samples)])}

    def check_item(self, item: MediaItem) -> None:
        if item.states != self.states:
            raise ValueError(f"it is of {self.states} states and has {item.states}")
        check_length(item, 0)
        if "embeds" not in item.tensors:
            fitting(item, "features", ("float32",), (self.log_mel.bands, self.context))

    def tower_inputs(self, item: MediaItem, upload: Upload = stay) -> dict[str, torch.Tensor]:
        """`input_features` `[1, bands, frames]`."""
        return {"input_features": upload(item.tensors["features"])[None]}

    def decoder(self, model: Any) -> nn.Module:
        stack: nn.Module = model.model.decoder
        return stack

    def attend_by(self, model: Any, decoder: str, vision: str) -> None:
        """The decoder gets a configuration of its own, in which sizes have their usual names.

        transformers' is that of the encoder too, whose names are those of the encoder's sizes.
        """
        config = copy.deepcopy(model.config)
        for name in ("layers", "attention_heads", "ffn_dim"):
            setattr(config, f"encoder_{name}", getattr(config, f"decoder_{name}"))
        config.num_hidden_layers = config.decoder_layers
        config.intermediate_size = config.decoder_ffn_dim
        config.num_key_value_heads = config.decoder_attention_heads
        config.query_pre_attn_scalar = 1.0  # its layers scale their queries themselves
        config._attn_implementation = decoder
        for module in model.model.decoder.modules():
            if hasattr(module, "config"):
                module.config = config

    def cross_layers(self, model: Any) -> CrossLayers:
        from engine.attention.backend import AttentionShape, CrossLayers  # these import torch

        sizes = self.state_sizes()
        return CrossLayers(
            shape=AttentionShape(
                layers=sizes.layers,
                heads=sizes.heads,
                kv_heads=sizes.kv_heads,
                head_dim=sizes.head_dim,
                scale=1.0,
            ),
            modules=[layer.encoder_attn for layer in model.model.decoder.layers],
        )

    def drop_towers(self, config: Any) -> None:
        config.encoder_layers = 0

    def encode(
        self, model: Any, items: list[MediaItem], upload: Upload = stay
    ) -> list[torch.Tensor]:
        import torch  # planning does without

        encoder = model.model.encoder
        states: list[torch.Tensor] = []
        for first in range(0, len(items), AT_ONCE):
            features = [
                self.tower_inputs(item, upload)["input_features"]
                for item in items[first : first + AT_ONCE]
            ]
            states += encoder(torch.cat(features).to(encoder.dtype)).last_hidden_state
        return states
