"""A tiny Whisper."""

from __future__ import annotations

import math
from pathlib import Path

from tests.checkpoints.files import (
    special_ids,
    write_generation_config,
    write_model,
    write_tokenizer,
)
from tests.checkpoints.tokenization import byte_level_tokenizer


def write_whisper(folder: str | Path, seed: int = 0, dtype: str = "float32") -> Path:
    """A Whisper that hears two seconds at once and has the special tokens of the real ones."""
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    folder = Path(folder)
    tokenizer = byte_level_tokenizer(SPECIAL + TIMES)
    ids = special_ids(
        tokenizer,
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        decoder_start="<|startoftranscript|>",
    )
    config = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=3,
        decoder_attention_heads=2,
        decoder_ffn_dim=48,
        num_mel_bins=16,
        max_source_positions=100,
        max_target_positions=448,
        vocab_size=math.ceil(tokenizer.get_vocab_size() / 64) * 64,
        **ids,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    write_model(folder, WhisperForConditionalGeneration(config), seed, dtype)
    write_tokenizer(folder, tokenizer, "", {"eos_token": "<|endoftext|>"})
    write_generation_config(folder, tokenizer, ["<|endoftext|>"])
    WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(folder)
    return folder


SPECIAL = [
    f"<|{name}|>"
    for name in (
        "endoftext",
        "startoftranscript",
        "en",
        "de",
        "fr",
        "translate",
        "transcribe",
        "startoflm",
        "startofprev",
        "nospeech",
        "notimestamps",
    )
]
TIMES = [f"<|{step * 0.02:.2f}|>" for step in range(101)]  # as far as it hears
