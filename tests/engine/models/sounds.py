"""Sounds for models to hear, and Ultravox put together from transformers' own parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch.nn.functional import gelu, pad, silu
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperFeatureExtractor
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from engine.models.item_tensors import tensors_of
from engine.models.registry import family_for
from engine.request import MediaItem

Samples = NDArray[np.float32]
RATE = 16_000


def sound(samples: int, seed: int) -> Samples:
    """A glide under noise: no two seeds sound alike to a model."""
    random = np.random.default_rng(seed)
    times = np.arange(samples) / RATE
    glide = np.sin(2 * np.pi * times * random.uniform(200, 2000) * (1 + times))
    return (0.3 * glide + 0.05 * random.standard_normal(samples)).astype(np.float32)


def sound_item(family: Any, samples: Samples, start: int = 0) -> MediaItem:
    tensors = tensors_of(family.preprocess_audio(samples))
    return MediaItem("audio", digest(samples), start, family.audio_tokens(len(samples)), tensors)


def digest(samples: Samples) -> bytes:
    return hashlib.sha256(samples.tobytes()).digest()


def prompt_with_sounds(
    folder: Path, parts: Sequence[list[int] | Samples]
) -> tuple[list[int], list[MediaItem]]:
    """Token ids and media items of text ids and sounds in order."""
    family = family_for(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    placeholder = tokenizer.convert_tokens_to_ids(family.placeholder("audio"))
    tokens: list[int] = []
    media: list[MediaItem] = []
    for part in parts:
        if isinstance(part, list):
            tokens += part
        else:
            media.append(sound_item(family, part, len(tokens)))
            tokens += [placeholder] * media[-1].length
    return tokens, media


class ComposedUltravox:
    """Whisper's encoder, a projector written out, and a Llama: one clip, one chunk at a time.

    A clip that nothing pads goes through transformers' encoder as it is, without a mask. Sounds are
    known by their digests.
    """

    def __init__(self, folder: Path, sounds: Sequence[Samples]) -> None:
        torch.set_num_threads(1)
        self.sounds = {digest(one): one for one in sounds}
        self.config = json.loads((folder / "config.json").read_text())
        self.extractor = WhisperFeatureExtractor.from_pretrained(folder)
        weights = load_file(folder / "model.safetensors")
        self.audio = _under("audio_tower.", weights)
        self.projector = _under("multi_modal_projector.", weights)
        self.text = LlamaForCausalLM(LlamaConfig(**self.config["text_config"])).eval()
        tied = self.config["text_config"]["tie_word_embeddings"]
        self.text.load_state_dict(_under("language_model.", weights), strict=not tied)
        self.context = 2 * self.config["audio_config"]["max_source_positions"]

    @torch.no_grad()
    def logits(self, tokens: list[int], media: Sequence[MediaItem] = ()) -> torch.Tensor:
        """`[tokens, vocabulary]`"""
        embedded = self.text.get_input_embeddings()(torch.tensor(tokens))
        for item in media:
            embedded[item.start : item.end] = self.embeddings(self.sounds[item.digest])
        return self.text(inputs_embeds=embedded[None]).logits[0]

    @torch.no_grad()
    def embeddings(self, samples: Samples) -> torch.Tensor:
        """`[tokens, hidden]` of a whole sound."""
        padded = np.pad(samples, (0, max(0, 2 * self.extractor.hop_length - len(samples))))
        heard = self.extractor(
            [padded],
            sampling_rate=RATE,
            padding="longest",
            pad_to_multiple_of=self.extractor.hop_length,
            truncation=False,
            return_attention_mask=True,
            return_tensors="pt",
        )
        features, total = heard.input_features[0], int(heard.attention_mask.sum())
        chunks = []
        for start in range(0, total, self.context):
            chunk = features[:, start : start + self.context]
            length = chunk.shape[1]
            if start:  # as Ultravox's processor pads what goes on
                chunk = pad(chunk, (0, self.context - length))
            chunks.append(self._projected(self._encoded(chunk, length), length))
        return torch.cat(chunks)

    def _encoded(self, chunk: torch.Tensor, length: int) -> torch.Tensor:
        places = -(-chunk.shape[1] // 2)
        told = self.config["audio_config"] | {"max_source_positions": places}
        encoder = WhisperEncoder(WhisperConfig(**told)).eval()
        weights = dict(self.audio)
        weights["embed_positions.weight"] = weights["embed_positions.weight"][:places]
        encoder.load_state_dict(weights)
        if length == chunk.shape[1] and length % 2 == 0:
            return encoder(chunk[None]).last_hidden_state[0]
        states = gelu(encoder.conv2(gelu(encoder.conv1(chunk[None])))).transpose(1, 2)
        states = states + encoder.embed_positions.weight
        mask = torch.zeros(1, 1, places, places)
        mask[..., -(-length // 2) :] = torch.finfo(torch.float32).min
        for layer in encoder.layers:
            states = layer(states, mask)
        return encoder.layer_norm(states)[0]

    def _projected(self, states: torch.Tensor, length: int) -> torch.Tensor:
        stack, weights = self.config["stack_factor"], self.projector
        filled = pad(states, (0, 0, 0, -len(states) % stack)).flatten()
        stacked = filled.view(-1, stack * states.shape[1])[: -(-length // (2 * stack))]
        value, gate = (
            _normed(stacked, weights["ln_pre.weight"]) @ weights["linear_1.weight"].T
        ).chunk(2, dim=-1)
        middle = silu(gate) * value
        if "ln_mid.weight" in weights:
            middle = _normed(middle, weights["ln_mid.weight"])
        projected = middle @ weights["linear_2.weight"].T
        after = weights.get("ln_post.weight")
        return projected if after is None else _normed(projected, after)


def _normed(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    norm = LlamaRMSNorm(len(weight))
    norm.weight.data = weight
    return norm(states)


def _under(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
