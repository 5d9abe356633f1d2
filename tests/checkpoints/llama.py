"""A tiny Llama."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints.files import (
    CHATML,
    decoder_sizes,
    special_ids,
    write_generation_config,
    write_model,
    write_tokenizer,
)
from tests.checkpoints.tokenization import (
    byte_level_tokenizer,
)


def write_llama(folder: str | Path, seed: int = 0, dtype: str = "float32") -> Path:
    """A Llama with a GPT-2-like tokenizer and ChatML, in the shape of SmolLM2."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(folder)
    tokenizer = byte_level_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    config = LlamaConfig(
        **decoder_sizes(tokenizer, layers=3),
        **special_ids(tokenizer, bos="<|im_start|>", eos="<|im_end|>", pad="<|im_end|>"),
        tie_word_embeddings=False,
    )
    write_model(folder, LlamaForCausalLM(config), seed, dtype)
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    write_tokenizer(folder, tokenizer, CHATML, names)
    write_generation_config(folder, tokenizer, ["<|im_end|>"], bos="<|im_start|>")
    return folder
