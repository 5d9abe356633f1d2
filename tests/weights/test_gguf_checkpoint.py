"""GGUF files converted by us are what transformers makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from appliance.config.errors import ConfigurationError
from appliance.weights.gguf_checkpoint import INNER, OUTER, halves_from_pairs, write_checkpoint
from engine.memory.checkpoint import tensor_shapes
from engine.native.block_weight import widened
from engine.native.blocks import kind_of
from tests.checkpoints.tokenization import CORPUS, byte_level_tokenizer
from tests.engine.native.block_weights import random_blocks

HEADS, KV_HEADS, HIDDEN, INTERMEDIATE, LAYERS = 4, 2, 64, 96, 2
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_gguf(
    file: Path,
    architecture: str = "llama",
    *,
    sizes: tuple[int, int] = (HIDDEN, INTERMEDIATE),
    kind: str = "Q4_1",
    others: Mapping[str, str] | None = None,
    tied: bool = True,
    **changes: Any,
) -> Path:
    """Write a tiny random model as llama.cpp would: float32 norms, matrices of a `kind`.

    `others` has those of other kinds, by a part of their name.
    """
    hidden, intermediate = sizes
    tokenizer = byte_level_tokenizer(SPECIAL)
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    merges = [" ".join(merge) for merge in _merges(tokenizer.to_str())]
    kinds = [3 if token in SPECIAL else 1 for token in tokens]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(changes.get("model", "gpt2"))
    writer.add_tokenizer_pre(changes.get("split", "smollm"))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocabulary["<|im_start|>"])
    writer.add_eos_token_id(vocabulary["<|im_end|>"])
    writer.add_unk_token_id(vocabulary["<|endoftext|>"])
    writer.add_pad_token_id(vocabulary["<|im_end|>"])
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)
    shapes = _shapes(len(tokens), architecture, sizes)
    if not tied:
        shapes.append(("output.weight", (len(tokens), hidden)))
    for seed, (name, shape) in enumerate(shapes):
        if len(shape) == 1:
            about = 1.0 if "norm" in name else 0.0
            writer.add_tensor(name, _as_bfloat16_has_it(about + random.normal(size=shape) / 4))
            continue
        spread = 0.25 if name == "token_embd.weight" else shape[1] ** -0.5
        own = [other for part, other in (others or {}).items() if part in f".{name}"]
        stored = gguf.GGMLQuantizationType[(own or [kind])[0]]
        if stored.name.endswith("_K"):  # there is no code that makes these
            blocks = random_blocks(stored.name, *shape, seed, spread=spread).blocks.numpy()
        else:
            values = (spread * random.normal(size=shape)).astype(np.float32)
            blocks = gguf.quantize(values, stored)
        writer.add_tensor(name, blocks, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _as_bfloat16_has_it(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return torch.from_numpy(values).bfloat16().float().numpy()


def _merges(tokenizer_json: str) -> list[list[str]]:
    import json

    merges: list[list[str]] = json.loads(tokenizer_json)["model"]["merges"]
    return merges


def _shapes(
    vocabulary: int, architecture: str, sizes: tuple[int, int]
) -> list[tuple[str, tuple[int, ...]]]:
    hidden, intermediate = sizes
    head = hidden // HEADS
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (vocabulary, hidden)),
        ("output_norm.weight", (hidden,)),
    ]
    for layer in range(LAYERS):
        block = {
            "attn_norm.weight": (hidden,),
            "attn_q.weight": (HEADS * head, hidden),
            "attn_k.weight": (KV_HEADS * head, hidden),
            "attn_v.weight": (KV_HEADS * head, hidden),
            "attn_output.weight": (hidden, HEADS * head),
            "ffn_norm.weight": (hidden,),
            "ffn_gate.weight": (intermediate, hidden),
            "ffn_up.weight": (intermediate, hidden),
            "ffn_down.weight": (hidden, intermediate),
        }
        if architecture == "qwen2":
            block |= {
                "attn_q.bias": (HEADS * head,),
                "attn_k.bias": (KV_HEADS * head,),
                "attn_v.bias": (KV_HEADS * head,),
            }
        shapes += [(f"blk.{layer}.{name}", shape) for name, shape in block.items()]
    return shapes


def convert(file: Path) -> Path:
    folder = file.parent / "converted"
    folder.mkdir()
    write_checkpoint(file, folder, lambda phase, fraction: None)
    return folder


MIXES: dict[str, dict[str, Any]] = {  # as llama.cpp makes them, and what no longer is made
    "q4_1": {"others": {"token_embd": "Q8_0"}},
    "q8_0": {"kind": "Q8_0", "tied": False},
    "q4_0": {"kind": "Q4_0", "others": {".output.weight": "Q6_K"}, "tied": False},
    "q4_k_m": {
        "kind": "Q4_K",
        "others": {"0.attn_v": "Q6_K", "1.ffn_down": "Q6_K", ".output.weight": "Q6_K"},
        "tied": False,
    },
    "q5_k_m": {"kind": "Q5_K", "others": {"attn_v": "Q6_K", "token_embd": "Q6_K"}},
    "old fives": {"kind": "Q5_1", "others": {"attn_k": "Q5_0", "0.ffn_up": "Q8_0"}},
    "no form in common": {"kind": "Q4_K", "others": {"1.ffn_gate": "Q6_K", "0.attn_v": "BF16"}},
}


def write_mix(file: Path, mix: str, architecture: str = "llama", **changes: Any) -> Path:
    """A file of several kinds of blocks, large enough for each of them."""
    split = "smollm" if architecture == "llama" else "qwen2"
    settings = {"sizes": (256, 256), "split": split} | MIXES[mix] | changes
    return write_gguf(file, architecture, **settings)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("mix", MIXES)
def test_what_is_written_is_what_transformers_reads(
    tmp_path: Path, mix: str, architecture: str
) -> None:
    """To the last bit, integers by what they mean; the file of it is no larger than theirs."""
    file = write_mix(tmp_path / "tiny.gguf", mix, architecture)
    folder = convert(file)
    expected = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32
    )
    reference = dict(expected.state_dict())
    converted = load_file(folder / "model.safetensors")
    found = {}
    for stored, tensor in converted.items():
        kind = kind_of(stored)
        if kind is None:
            assert tensor.dtype == torch.bfloat16
            found[stored] = tensor.float()
        else:
            found[stored.removesuffix(f".{kind}")] = widened(kind, tensor)
    tied = MIXES[mix].get("tied", True)
    assert set(reference) - set(found) == ({"lm_head.weight"} if tied else set())
    for name, tensor in found.items():
        assert torch.equal(tensor, reference[name]), name
    queries = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(found[queries].flip(0), reference[queries])  # control
    matrices = [name for name, tensor in found.items() if tensor.ndim == 2]
    kept = [name for name in converted if kind_of(name)]
    assert len(kept) == len(matrices) - (mix == "no form in common")
    assert (folder / "model.safetensors").stat().st_size < file.stat().st_size
    sizes = {name: shape for name, (_, shape) in tensor_shapes(folder).items()}
    assert sizes == {name: list(tensor.shape) for name, tensor in found.items()}


def test_query_rows_left_in_llama_cpps_order_would_be_seen() -> None:
    rows = np.arange(HIDDEN, dtype=np.float32)[:, None]
    assert not np.array_equal(halves_from_pairs(rows, HEADS), rows)
    pairs = halves_from_pairs(rows, HEADS).reshape(HEADS, 2, -1, 1).swapaxes(1, 2)
    assert np.array_equal(pairs.reshape(rows.shape), rows)


def test_the_tokenizer_is_that_of_transformers(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", split="gpt-2")
    ours = AutoTokenizer.from_pretrained(convert(file))
    expected = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    texts = [*CORPUS.splitlines(), "<|im_start|>user\nHi<|im_end|>", "\n\n \t x", "a1b22 333", ""]
    for text in texts:
        assert ours(text).input_ids == expected(text).input_ids, text
        assert ours.decode(ours(text).input_ids) == text
    assert ours.special_tokens_map == expected.special_tokens_map
    messages = [{"role": "user", "content": "Hi"}]
    assert ours.apply_chat_template(messages, tokenize=False) == "<|im_start|>Hi<|im_end|>"


def test_smollm_keeps_digits_apart_from_the_spaces_before_them(tmp_path: Path) -> None:
    """As SmolLM2's published tokenizer does; transformers' GGUF reader drops that split."""
    ours = AutoTokenizer.from_pretrained(convert(write_gguf(tmp_path / "tiny.gguf")))
    split = ours.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [piece for piece, _ in split("a   12")] == ["a", "ĠĠĠ", "1", "2"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba' is not supported"),
        ({"model": "llama"}, "tokenizer of kind 'llama' is not supported"),
        ({"split": "tekken"}, "split as 'tekken' is not supported"),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    tmp_path: Path, changes: dict[str, str], expected: str
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", **changes)
    with pytest.raises(ConfigurationError, match=expected):
        convert(file)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"not a model at all, but long enough to be read")
    with pytest.raises(ConfigurationError, match=r"'tiny\.gguf' is not a GGUF file"):
        convert(file)


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:-20000])
    with pytest.raises(ConfigurationError, match=r"'tiny\.gguf' is not a GGUF file, or is damaged"):
        convert(file)


def test_every_name_of_the_map_is_one_that_llama_cpp_knows() -> None:
    known = {name.rpartition(".")[2] for name in gguf.TENSOR_NAMES.values()}
    assert {*OUTER, *INNER} <= known
