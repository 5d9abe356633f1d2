"""A GGUF file written as a checkpoint folder: safetensors, tokenizer and configuration files.

Formats: the GGUF specification (ggml-org/ggml, docs/gguf.md); names as llama.cpp writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from appliance.config.errors import ConfigurationError
from appliance.weights.gguf_header import check_header
from appliance.weights.progress import Progress
from engine.native.blocks import KINDS

# what values of another type, or of no sense, lead to in what is computed of them
UNFIT = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}
OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SPECIAL_TOKEN_TYPES = (gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN)
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_checkpoint(file: Path, folder: Path, progress: Progress) -> None:
    """Write the model in `file` to `folder`: matrices of integers as they are, others in bfloat16.

    Raises ConfigurationError for a damaged file, or an architecture or tokenizer that is not known.
    """
    check_header(file)
    try:
        reader = gguf.GGUFReader(file, "c")  # arrays that torch takes; the file stays as it is
        config, tokenizer, settings = described(reader)
        tensors = dict(convert_tensors(reader, config, progress))
    except UNFIT as error:
        raise ConfigurationError(f"'{file.name}' is not a GGUF file, or is damaged") from error
    except Exception as error:  # tokenizers raises nothing more special
        if type(error) is not Exception:
            raise
        raise ConfigurationError(f"the tokenizer in '{file.name}' is damaged") from error
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "config.json", config)
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    write_json(folder / "generation_config.json", {name: config[name] for name in ids})


def described(reader: gguf.GGUFReader) -> tuple[dict[str, Any], Tokenizer, dict[str, Any]]:
    """The config.json, tokenizer and tokenizer_config.json of a file."""
    metadata = Metadata(reader)
    architecture = metadata.text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ConfigurationError(
            f"GGUF architecture '{architecture[:100]}' is not supported "
            f"(there are {', '.join(ARCHITECTURES)}); use a safetensors checkpoint of the model"
        )
    tokenizer = build_tokenizer(metadata)
    config = model_config(metadata, architecture, {tensor.name for tensor in reader.tensors})
    return config, tokenizer, tokenizer_config(metadata)


class Metadata:
    """Typed access to the key-value pairs of a GGUF file."""

    def __init__(self, reader: gguf.GGUFReader) -> None:
        self._fields = reader.fields

    def get(self, key: str) -> Any:
        field = self._fields.get(key)
        return None if field is None else field.contents()

    def required(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise ConfigurationError(f"the GGUF file lacks the key {key}")
        return value

    def text(self, key: str) -> str:
        return str(self.required(key))

    def strings(self, key: str) -> list[str]:
        return [str(value) for value in self.required(key)]


def model_config(metadata: Metadata, architecture: str, tensors: set[str]) -> dict[str, Any]:
    """Return config.json as transformers writes it."""
    model_type, name = ARCHITECTURES[architecture]

    def size(key: str) -> Any:
        return metadata.required(f"{architecture}.{key}")

    heads = size("attention.head_count")
    hidden = size("embedding_length")
    head_dim = metadata.get(f"{architecture}.attention.key_length") or hidden // heads
    theta = float(metadata.get(f"{architecture}.rope.freq_base") or 10000.0)
    if metadata.get(f"{architecture}.rope.scaling.type") not in (None, "none"):
        raise ConfigurationError("scaled rotary positions in a GGUF file are not supported")
    return {
        "architectures": [name],
        "model_type": model_type,
        "dtype": "bfloat16",
        "hidden_size": hidden,
        "intermediate_size": size("feed_forward_length"),
        "num_hidden_layers": size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get(f"{architecture}.attention.head_count_kv") or heads,
        "head_dim": head_dim,
        "max_position_embeddings": size("context_length"),
        "rms_norm_eps": round(size("attention.layer_norm_rms_epsilon"), 12),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "vocab_size": len(metadata.required("tokenizer.ggml.tokens")),
        "tie_word_embeddings": "output.weight" not in tensors,
        "hidden_act": "silu",
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.required("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }


def convert_tensors(
    reader: gguf.GGUFReader, config: dict[str, Any], progress: Progress
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor by its name in transformers.

    Matrices of a kind that the engine reads are the blocks of their file, `[out, bytes of a row]`,
    and their name ends with their kind; what is of others is dequantized.
    """
    done, total = 0, sum(tensor.n_bytes for tensor in reader.tensors)
    for tensor in reader.tensors:
        name, stored, kind = tensor_name(tensor.name), tensor.tensor_type, tensor.tensor_type.name
        stays = kind in KINDS and len(tensor.shape) == 2
        values = (
            np.asarray(tensor.data, np.uint8)
            if stays
            else gguf.dequantize(tensor.data, stored).astype(np.float32, copy=False)
        )
        which = tensor.name.split(".")[-2:][0]
        if config["model_type"] == "llama" and which in ("attn_q", "attn_k"):
            heads = "num_attention_heads" if which == "attn_q" else "num_key_value_heads"
            values = halves_from_pairs(values, config[heads])
        if stays:
            yield f"{name}.{kind}", torch.from_numpy(np.ascontiguousarray(values))
        else:
            yield name, as_bfloat16(values)
        done += tensor.n_bytes
        progress("converting weights", done / total)


def as_bfloat16(values: np.ndarray[Any, Any]) -> torch.Tensor:
    """Round float32 to the nearest bfloat16, ties to even.

    In numpy because torch would start threads for each of hundreds of small tensors.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return torch.from_numpy(rounded.astype(np.uint16)).view(torch.bfloat16)


def tensor_name(name: str) -> str:
    """Return transformers' name of a tensor. Raises ConfigurationError if unknown."""
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if block and block[2] in INNER:
        return f"model.layers.{block[1]}.{INNER[block[2]]}.{block[3]}"
    outer, _, kind = name.rpartition(".")
    if outer in OUTER:
        return f"{OUTER[outer]}.{kind}"
    raise ConfigurationError(f"the GGUF file has a tensor that is not known: {name[:100]}")


def halves_from_pairs(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Undo llama.cpp's order of query and key rows: it rotates neighbours, transformers halves."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def build_tokenizer(metadata: Metadata) -> Tokenizer:
    """Return the byte-level BPE tokenizer that the file describes."""
    model, split = metadata.text("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if model != "gpt2":
        raise ConfigurationError(
            f"a GGUF tokenizer of kind '{model}' is not supported; use a safetensors checkpoint"
        )
    tokens = metadata.strings("tokenizer.ggml.tokens")
    merges = [
        (left, right)
        for left, _, right in (
            merge.partition(" ") for merge in metadata.strings("tokenizer.ggml.merges")
        )
    ]
    kinds = metadata.get("tokenizer.ggml.token_type") or []
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizer(split)
    tokenizer.decoder = decoders.ByteLevel()
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    for text, kind in zip(tokens, kinds, strict=False):
        if kind in SPECIAL_TOKEN_TYPES:
            tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
        elif kind == gguf.TokenType.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(text, special=False, normalized=False)])
    return tokenizer


def pre_tokenizer(split: str | None) -> pre_tokenizers.PreTokenizer:
    """Return the split before BPE; `split` is one of llama.cpp's names (`llama-vocab.cpp`)."""
    if split == "smollm":  # every digit alone
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if split == "qwen2":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if split in (None, "default", "gpt-2"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    raise ConfigurationError(
        f"a GGUF tokenizer split as '{split}' is not supported; use a safetensors checkpoint"
    )


def tokenizer_config(metadata: Metadata) -> dict[str, Any]:
    """Return tokenizer_config.json with special tokens and the chat template."""
    tokens = metadata.required("tokenizer.ggml.tokens")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token")),
    }
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for name, key in names.items():
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            config[f"{name}_token"] = str(tokens[index])
    template = metadata.get("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = str(template)
    return config


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
