"""Ultravox: sounds become some six tokens a second, by Whisper's encoder, in front of a Llama."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from engine.errors import ModelUnsupported
from engine.models.documents import optional_document
from engine.models.family import Family, stay
from engine.models.item_tensors import check_length, fitting
from engine.models.log_mel import LogMel, sound_options
from engine.models.sound_chunks import AT_ONCE, chunk_lengths
from engine.models.text_defaults import LLAMA
from engine.request import MediaItem

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from engine.models.family import Arrays, Upload

PLACEHOLDER = "<|audio|>"
RESERVED = "<|reserved_special_token_"
STRIDE = 2  # of the encoder's convolutions
POSITIONS, WIDTH = 1500, 384  # defaults of transformers' WhisperConfig


class Ultravox(Family):
    """Ultravox with Whisper's encoder and whatever text model transformers has.

    A sound longer than the encoder's context, 30 seconds, is cut into chunks of it, as Ultravox's
    own processor does.
    """

    architectures: ClassVar[tuple[str, ...]] = ("UltravoxModel",)
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    tower_prefixes: ClassVar[tuple[str, ...]] = (
        "audio_tower.",
        "encoder.",  # of a Whisper that the checkpoint names as its tower
        "multi_modal_projector.",
    )

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
        self._positions = int(audio.get("max_source_positions", POSITIONS))
        self.context = STRIDE * self._positions
        self.frames_per_token = STRIDE * int(self.config.get("stack_factor", 8))
        self._log_mel = LogMel(sound_options(self.folder), int(audio.get("num_mel_bins", 80)))

    def text_config(self) -> dict[str, Any]:
        return LLAMA | self.config["text_config"]

    def most_tokens(self, modality: str, max_len: int) -> int:
        return max_len

    def tower_places(self, modality: str, max_len: int, tokens: int) -> int:
        return AT_ONCE * self._positions

    def tower_width(self, modality: str) -> tuple[int, int]:
        audio = self.config["audio_config"]
        hidden = int(audio.get("d_model", WIDTH))
        return hidden, int(audio.get("encoder_ffn_dim") or 4 * hidden)

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
        return self._tokens(self._log_mel.frames(samples))

    def _tokens(self, frames: int) -> int:
        lengths = chunk_lengths(frames, self.context)
        return sum(-(-length // self.frames_per_token) for length in lengths)

    def preprocess_audio(self, samples: NDArray[np.float32]) -> Arrays:
        """`features` `[bands, frames]`, float32, 100 frames a second."""
        return {"features": self._log_mel.spectrogram(samples)}

    def check_item(self, item: MediaItem) -> None:
        if "embeds" not in item.tensors:
            features = fitting(item, "features", ("float32",), (self._log_mel.bands, None))
            check_length(item, self._tokens(features.shape[1]))

    def tower_inputs(self, item: MediaItem, upload: Upload = stay) -> dict[str, torch.Tensor]:
        """`audio_values` `[chunks, bands, width]`, and `audio_lens` `[chunks]`, in frames."""
        import torch  # planning does without

        features = upload(item.tensors["features"])
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

    def encode(
        self, model: Any, items: list[MediaItem], upload: Upload = stay
    ) -> list[torch.Tensor]:
        import torch  # planning does without

        tower = model.audio_tower
        inputs = [self.tower_inputs(item, upload) for item in items]
        chunks = [chunk.to(tower.dtype) for one in inputs for chunk in one["audio_values"]]
        lengths = [length for one in inputs for length in one["audio_lens"].tolist()]
        embedded = iter(model.hear(chunks, lengths))
        return [torch.cat([next(embedded) for _ in one["audio_lens"]]) for one in inputs]


def _placeholder(folder: Path) -> str:
    names: list[str] = []
    for file, key in (("tokenizer_config.json", "added_tokens_decoder"), ("tokenizer.json", "")):
        content = optional_document(folder / file)
        listed = (content.get(key) or {}).values() if key else content.get("added_tokens")
        names += [str(entry["content"]) for entry in listed or []]
    if PLACEHOLDER in names:
        return PLACEHOLDER
    reserved = [name for name in names if name.startswith(RESERVED)]
    if not reserved:
        raise ModelUnsupported(
            f"the tokenizer in {folder} has neither {PLACEHOLDER} nor a reserved special token "
            "that could stand for a sound"
        )
    return reserved[0]
