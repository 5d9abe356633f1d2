"""The model that hears: a small Ultravox, its tokenizer and the files beside its weights."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    PreTrainedTokenizerBase,
    WhisperConfig,
    WhisperFeatureExtractor,
)  # fmt: skip

from engine.models.ultravox_model import UltravoxConfig, UltravoxModel
from tools.demo import audio, chat
from tools.demo.audio_questions import about_sound
from tools.demo.tokenizer import byte_level

BANDS = 80
CONTEXT = 1000  # frames, of 10 ms: the longest sound takes some seven seconds
STACK = 4  # positions of 20 ms to a token
PLACEHOLDER = "<|audio|>"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", PLACEHOLDER)
TEMPLATE = chat.TEMPLATE.replace(
    "('image', 'image_url')", "('audio', 'audio_url', 'input_audio')"
).replace("<|vision_start|><|image_pad|><|vision_end|>", PLACEHOLDER)
KINDS = {"beeps": 3, "digits": 5, "glide": 1, "tone": 1, "pair": 1}
MAKERS = {
    "beeps": audio.random_beeps,
    "glide": audio.random_glide,
    "tone": audio.random_tone,
    "pair": audio.random_pair,
}


def random_sound(rng: random.Random, *, held_out: bool = False) -> audio.Sound:
    """Return a sound of any kind, as often as `KINDS` weighs it."""
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    if kind == "digits":
        return audio.random_digits(rng, held_out=held_out)
    return MAKERS[kind](rng)


def train_tokenizer(sounds: int = 2000, seed: int = 7) -> PreTrainedTokenizerBase:
    """Return a tokenizer trained on what is said about sounds."""
    return byte_level(_corpus(sounds, seed), SPECIAL, TEMPLATE)


def _corpus(sounds: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(sounds):
        for turn in about_sound(random_sound(rng), rng):
            yield turn.question
            yield turn.answer
        yield "system\nYou are a helpful assistant.\nuser\nassistant\n"


def new_model(tokenizer: PreTrainedTokenizerBase) -> UltravoxModel:
    """Return the model with fresh weights."""
    vocabulary = tokenizer.get_vocab()
    return UltravoxModel(
        UltravoxConfig(
            audio_config=WhisperConfig(
                d_model=192,
                encoder_layers=4,
                encoder_attention_heads=3,
                encoder_ffn_dim=768,
                num_mel_bins=BANDS,
                max_source_positions=CONTEXT // 2,
            ),
            text_config=LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=192,
                intermediate_size=512,
                num_hidden_layers=4,
                num_attention_heads=3,
                num_key_value_heads=3,
                max_position_embeddings=1024,
                tie_word_embeddings=True,
                bos_token_id=vocabulary["<|endoftext|>"],
                eos_token_id=vocabulary["<|im_end|>"],
                pad_token_id=vocabulary["<|endoftext|>"],
            ),
            hidden_size=768,
            stack_factor=STACK,
            projector_ln_mid=True,
        )
    )


def write(model: UltravoxModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the checkpoint in bfloat16 with tokenizer, template and extractor settings."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    WhisperFeatureExtractor(feature_size=BANDS, chunk_length=CONTEXT // 100).save_pretrained(folder)
    text = model.config.text_config
    ends = {"do_sample": False, "eos_token_id": [text.eos_token_id, text.pad_token_id]}
    ends["pad_token_id"] = text.pad_token_id
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")
