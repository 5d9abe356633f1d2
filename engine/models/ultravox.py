"""Ultravox: sounds become some six tokens a second, by Whisper's encoder, in front of a Llama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from engine.errors import ModelUnsupported
from engine.models.family import Family
from engine.models.log_mel import LogMel, sound_options
from engine.models.sound_chunks import chunk_lengths
from engine.request import MediaItem

PLACEHOLDER = "<|audio|>"
RESERVED = "<|reserved_special_token_"
STRIDE = 2  # of the encoder's convolutions


class Ultravox(Family):
    """Ultravox with Whisper's encoder and whatever text model transformers has.

    A sound longer than the encoder's context, 30 seconds, is cut into chunks of it, as Ultravox's
    own processor does.
    """

    architectures: ClassVar[tuple[str, ...]] = ("UltravoxModel",)
    modalities: ClassVar[tuple[str, ...]] = ("audio",)

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        for part in ("text_config", "audio_config"):
            if not isinstance(self.config.get(part), dict):
                raise ModelUnsupported(
                    f"{folder}/config.json has no {part}: a checkpoint that names another model "
                    "for it is put together with that one by its recipe's model.path"
                )
        if self.config.get("num_projector_layers") or self.config.get("audio_latency_block_size"):
            raise ModelUnsupported(
                "Ultravox is served with the projector of stacked frames and an encoder that hears "
                "all of a sound: num_projector_layers and audio_latency_block_size must not be set"
            )
        audio = self.config["audio_config"]
        self.context = STRIDE * int(audio.get("max_source_positions", 1500))
        self.frames_per_token = STRIDE * int(self.config.get("stack_factor", 8))
        self._log_mel = LogMel(sound_options(self.folder), int(audio.get("num_mel_bins", 80)))

    def placeholder(self, modality: str) -> str:
        """`<|audio|>`, or where the tokenizer has no such token, one that it keeps in reserve.

        Published tokenizers are those of the text model. Which token it is does not matter to the
        answer: its embeddings are replaced.
        """
        if modality != "audio":
            raise KeyError(modality)
        return _placeholder(self.folder)

    def audio_rate(self) -> int:
        return self._log_mel.rate

    def audio_tokens(self, samples: int) -> int:
        lengths = chunk_lengths(self._log_mel.frames(samples), self.context)
        return sum(-(-length // self.frames_per_token) for length in lengths)

    def preprocess_audio(self, samples: torch.Tensor) -> dict[str, torch.Tensor]:
        """`features` `[bands, frames]`, float32, 100 frames a second."""
        return {"features": self._log_mel.spectrogram(samples)}

    def tower_inputs(self, item: MediaItem, device: torch.device) -> dict[str, torch.Tensor]:
        """`audio_values` `[chunks, bands, width]`, and `audio_lens` `[chunks]`, in frames."""
        features = item.tensors["features"].to(device)
        lengths = chunk_lengths(features.shape[1], self.context)
        if len(lengths) > 1:
            missing = self.context - lengths[-1]
            features = torch.nn.functional.pad(features, (0, missing))
        values = features.unflatten(1, (len(lengths), -1)).transpose(0, 1)
        return {"audio_values": values, "audio_lens": torch.tensor(lengths)}

    def model_class(self) -> Any:
        from engine.models.ultravox_model import UltravoxModel  # the light half does without

        return UltravoxModel

    def key_mapping(self) -> dict[str, str] | None:
        """Names of the weights of models that this one is put together from."""
        return {r"^model\.encoder\.": "audio_tower.", r"^(model\.|lm_head\.)": r"language_model.\1"}

    def decoder(self, model: Any) -> nn.Module:
        return model.language_model.model

    def drop_towers(self, config: Any) -> None:
        config.audio_config.encoder_layers = 0

    def encode(self, model: Any, items: list[MediaItem]) -> list[torch.Tensor]:
        tower = model.audio_tower
        inputs = [self.tower_inputs(item, tower.device) for item in items]
        chunks = [chunk.to(tower.dtype) for one in inputs for chunk in one["audio_values"]]
        lengths = [length for one in inputs for length in one["audio_lens"].tolist()]
        embedded = iter(model.hear(chunks, lengths))
        return [torch.cat([next(embedded) for _ in one["audio_lens"]]) for one in inputs]


def _placeholder(folder: Path) -> str:
    names: list[str] = []
    for file, key in (("tokenizer_config.json", "added_tokens_decoder"), ("tokenizer.json", "")):
        path = folder / file
        if path.is_file():
            told = json.loads(path.read_text(encoding="utf-8"))
            entries = (told.get(key) or {}).values() if key else told.get("added_tokens") or []
            names += [entry["content"] for entry in entries]
    if PLACEHOLDER in names:
        return PLACEHOLDER
    reserved = [name for name in names if name.startswith(RESERVED)]
    if not reserved:
        raise ModelUnsupported(
            f"the tokenizer in {folder} has neither {PLACEHOLDER} nor a reserved special token "
            "that could stand for a sound"
        )
    return reserved[0]
