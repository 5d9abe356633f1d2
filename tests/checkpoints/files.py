"""The files of a checkpoint, and the sizes that all tiny decoders have."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from bench.random_weights import EMBEDDINGS, randomise

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]

QWEN_NAMES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}

CHATML = """
{%- if messages[0].role != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def decoder_sizes(tokenizer: Tokenizer, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": math.ceil(tokenizer.get_vocab_size() / 64) * 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
    }


def special_ids(tokenizer: Tokenizer, **names: str) -> dict[str, Any]:
    return {f"{role}_token_id": tokenizer.token_to_id(text) for role, text in names.items()}


def write_model(
    folder: Path, model: Any, seed: int, dtype: str, embeddings: float = EMBEDDINGS
) -> None:
    randomise(model, seed, embeddings)
    model.to(getattr(torch, dtype)).save_pretrained(folder)


def write_tokenizer(
    folder: Path, tokenizer: Tokenizer, template: str | None, names: dict[str, str]
) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 4096,
            **({} if template is None else {"chat_template": template}),
            **names,
        },
    )


def write_generation_config(
    folder: Path,
    tokenizer: Tokenizer,
    ends: list[str],
    bos: str = "<|endoftext|>",
    pad: str = "<|endoftext|>",
) -> None:
    ids = [tokenizer.token_to_id(text) for text in ends]
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": tokenizer.token_to_id(bos),
            "eos_token_id": ids if len(ids) > 1 else ids[0],
            "pad_token_id": tokenizer.token_to_id(pad),
        },
    )


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
