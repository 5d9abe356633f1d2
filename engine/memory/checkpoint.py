"""What a checkpoint folder says of itself without a weight being read."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelUnsupported
from engine.models.family import Family
from engine.models.registry import family_for

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
STORED = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
SPLIT = re.compile(  # what tensor parallelism divides, by rows, by columns or by vocabulary
    r"\b([qkv]_proj|gate_proj|up_proj)\.(weight|bias)$|\b(o_proj|down_proj|embed_tokens|lm_head)\.weight$"
)
MAX_HEADER = 100 * 1024 * 1024  # the limit of the safetensors format


@dataclass(slots=True, frozen=True)
class Checkpoint:
    """Sizes of a checkpoint. Parameters of media towers are counted apart from the decoder's.

    `whole_parameters` are those of the decoder that every rank of several holds: norms.
    """

    architecture: str
    dtype: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    positions: int
    tied: bool
    decoder_parameters: int
    tower_parameters: int
    embedding_parameters: int
    modalities: tuple[str, ...]
    whole_parameters: int


def read_checkpoint(folder: str | Path, family: Family | None = None) -> Checkpoint:
    """Read `config.json` and safetensors headers; the family is looked up unless it is given.

    Raises ModelUnsupported when a file is missing, unreadable, or lacks what is needed.
    """
    family = family_for(folder) if family is None else family
    folder, config, text = family.folder, family.config, family.text_config()
    tensors = tensor_shapes(folder)
    tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    tower = decoder = whole = 0
    for name, (_, shape) in tensors.items():
        if name.removeprefix("model.").startswith(family.tower_prefixes):
            tower += math.prod(shape)
        elif not (tied and name.endswith("lm_head.weight")):
            decoder += math.prod(shape)
            whole += 0 if SPLIT.search(name) else math.prod(shape)
    embedding = next(
        (shape for name, (_, shape) in tensors.items() if name.endswith("embed_tokens.weight")), []
    )
    try:
        heads = text["num_attention_heads"]
        return Checkpoint(
            architecture=(config.get("architectures") or ["(none named)"])[0],
            dtype=_dtype(config, text, tensors),
            layers=text["num_hidden_layers"],
            hidden=text["hidden_size"],
            intermediate=text["intermediate_size"],
            heads=heads,
            kv_heads=text.get("num_key_value_heads") or heads,
            head_dim=text.get("head_dim") or text["hidden_size"] // heads,
            vocabulary=embedding[0] if embedding else text["vocab_size"],
            positions=text["max_position_embeddings"],
            tied=tied,
            decoder_parameters=decoder,
            tower_parameters=tower,
            embedding_parameters=math.prod(embedding) if embedding else 0,
            modalities=family.available,
            whole_parameters=whole,
        )
    except KeyError as error:
        raise ModelUnsupported(f"{folder}/config.json lacks {error.args[0]}") from error


def stored_dtype(folder: str | Path) -> str | None:
    """The type that all tensors are stored in; None if they are of several, or of an odd one."""
    kinds = {kind for kind, _ in tensor_shapes(Path(folder)).values()}
    kind = kinds.pop() if len(kinds) == 1 else ""
    return STORED[kind] if kind in ("F32", "BF16", "F16") else None


def tensor_shapes(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Return stored type and shape of every tensor, from one file or the files of an index.

    Format: https://github.com/huggingface/safetensors#format
    """
    tensors = {}
    headers: dict[Path, dict[str, Any]] = {}
    for name, file in tensor_files(folder).items():
        if file not in headers:
            headers[file] = _header(file)
        entry = headers[file].get(name)
        if entry is None:
            raise ModelUnsupported(f"{file} lacks {name}, which the index lists")
        tensors[name] = (str(entry["dtype"]), list(entry["shape"]))
    return tensors


def tensor_files(folder: Path) -> dict[str, Path]:
    """The file of every tensor: those of an index, or else of one file, or else of all there are.

    Raises ModelUnsupported when there are none.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return {name: folder / file for name, file in _read_json(index)["weight_map"].items()}
    one = folder / "model.safetensors"
    files = [one] if one.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelUnsupported(f"{folder} holds no safetensors")
    return {name: file for file in files for name in _header(file) if name != "__metadata__"}


def _header(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= MAX_HEADER:
                raise ValueError
            header: dict[str, Any] = json.loads(stream.read(length))
    except (OSError, ValueError) as error:
        raise ModelUnsupported(f"{file} is missing or not a safetensors file") from error
    return header


def _dtype(config: dict[str, Any], text: dict[str, Any], tensors: dict[str, Any]) -> str:
    for source in (config, text):
        declared = source.get("dtype") or source.get("torch_dtype")
        if declared in ITEMSIZE:
            return str(declared)
    stored = Counter(STORED[kind] for kind, _ in tensors.values() if kind in STORED)
    return stored.most_common(1)[0][0] if stored else "float32"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnsupported(f"{file} is missing or not JSON") from error
    return content
