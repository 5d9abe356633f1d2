"""A tiny Whisper."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tests.checkpoints.files import special_ids, write_json, write_model, write_tokenizer
from tests.checkpoints.tokenization import byte_level_tokenizer


def write_whisper(
    folder: str | Path,
    seed: int = 0,
    dtype: str = "float32",
    positions: int = 448,
    multilingual: bool = True,
) -> Path:
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
        max_target_positions=positions,
        vocab_size=math.ceil(tokenizer.get_vocab_size() / 64) * 64,
        **ids,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    write_model(folder, WhisperForConditionalGeneration(config), seed, dtype)
    write_tokenizer(folder, tokenizer, None, {"eos_token": "<|endoftext|>"})
    write_json(folder / "generation_config.json", generation(tokenizer, positions, multilingual))
    WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(folder)
    return folder


def generation(tokenizer: Tokenizer, positions: int, multilingual: bool) -> dict[str, Any]:
    """What is said of a real one's tokens; those that are never said are some of these."""
    ids = {text: tokenizer.token_to_id(text) for text in SPECIAL}
    told: dict[str, Any] = {
        **{f"{role}_token_id": ids["<|endoftext|>"] for role in ("bos", "eos", "pad")},
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "is_multilingual": multilingual,
        "max_initial_timestamp_index": 50,
        "max_length": positions,
        "suppress_tokens": [5, 6, 7, *range(ids["<|startoftranscript|>"], ids["<|notimestamps|>"])],
        "begin_suppress_tokens": [220, ids["<|endoftext|>"]],
        "alignment_heads": [[0, 1], [2, 0], [2, 1]],
        "return_timestamps": False,
    }
    if multilingual:
        told["lang_to_id"] = {text: ids[text] for text in ("<|en|>", "<|de|>", "<|fr|>")}
        told["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("translate", "transcribe")}
    return told


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
