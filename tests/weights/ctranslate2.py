"""A Whisper of transformers as CTranslate2's converter writes it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def write_model(checkpoint: Path, folder: Path, kind: str = "WhisperSpec") -> bytes:
    """Writes model.bin, tokenizer.json and config.json; returns the bytes of the first."""
    weights = load_file(checkpoint / "model.safetensors")
    config = json.loads((checkpoint / "config.json").read_text())
    arrays: dict[str, np.ndarray] = {}

    def put(there: str, *names: str, norm: bool = False) -> None:
        for suffix, other in (("weight", "gamma"), ("bias", "beta")):
            parts = []
            for name in names:
                part = weights.get(f"model.{name}.{suffix}")
                if part is None:  # a key's product has no bias
                    part = np.zeros_like(weights[f"model.{name}.weight"][:, 0])
                parts.append(part)
            arrays[f"{there}/{other if norm else suffix}"] = np.concatenate(parts)

    for side in ("encoder", "decoder"):
        positions = weights[f"model.{side}.embed_positions.weight"]
        arrays[f"{side}/position_encodings/encodings"] = positions
        arrays[f"{side}/num_heads"] = np.int16(config[f"{side}_attention_heads"])
        put(f"{side}/layer_norm", f"{side}.layer_norm", norm=True)
        for layer in range(config[f"{side}_layers"]):
            there, here = f"{side}/layer_{layer}", f"{side}.layers.{layer}"
            attention = f"{there}/self_attention"
            put(f"{attention}/layer_norm", f"{here}.self_attn_layer_norm", norm=True)
            put(f"{attention}/linear_0", *(f"{here}.self_attn.{one}_proj" for one in "qkv"))
            put(f"{attention}/linear_1", f"{here}.self_attn.out_proj")
            if side == "decoder":
                across = f"{there}/attention"
                put(f"{across}/layer_norm", f"{here}.encoder_attn_layer_norm", norm=True)
                put(f"{across}/linear_0", f"{here}.encoder_attn.q_proj")
                put(f"{across}/linear_1", *(f"{here}.encoder_attn.{one}_proj" for one in "kv"))
                put(f"{across}/linear_2", f"{here}.encoder_attn.out_proj")
            put(f"{there}/ffn/layer_norm", f"{here}.final_layer_norm", norm=True)
            put(f"{there}/ffn/linear_0", f"{here}.fc1")
            put(f"{there}/ffn/linear_1", f"{here}.fc2")
    for name in ("conv1", "conv2"):
        put(f"encoder/{name}", f"encoder.{name}")
    arrays["decoder/embeddings/weight"] = weights["model.decoder.embed_tokens.weight"]
    written = encoded(arrays, {"decoder/projection/weight": "decoder/embeddings/weight"}, kind)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").write_bytes(written)
    (folder / "tokenizer.json").write_bytes((checkpoint / "tokenizer.json").read_bytes())
    told: dict[str, Any] = {"suppress_ids": [1, 2, 7], "suppress_ids_begin": [5]}
    (folder / "config.json").write_text(json.dumps(told | {"alignment_heads": [[0, 1]]}))
    return written


def encoded(arrays: dict[str, np.ndarray], aliases: dict[str, str], kind: str) -> bytes:
    parts = [struct.pack("<I", 6), text(kind), struct.pack("<II", 3, len(arrays))]
    for name, array in sorted(arrays.items()):
        shape = array.shape
        parts += [text(name), struct.pack(f"<B{len(shape)}I", len(shape), *shape)]
        parts += [struct.pack("<BI", CODES[str(array.dtype)], array.nbytes), array.tobytes()]
    parts.append(struct.pack("<I", len(aliases)))
    parts += [text(part) for pair in aliases.items() for part in pair]
    return b"".join(parts)


def text(value: str) -> bytes:
    content = value.encode() + b"\0"
    return struct.pack("<H", len(content)) + content
