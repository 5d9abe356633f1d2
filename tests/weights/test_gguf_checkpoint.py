"""GGUF files converted by us are what transformers makes of them."""

from __future__ import annotations

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
from tests.checkpoints.tokenization import CORPUS, byte_level_tokenizer

HEADS, KV_HEADS, HIDDEN, INTERMEDIATE, LAYERS = 4, 2, 64, 96, 2
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_gguf(file: Path, architecture: str = "llama", **changes: Any) -> Path:
    """Write a tiny random model as llama.cpp would: Q4_1 matrices, float32 norms."""
    tokenizer = byte_level_tokenizer(SPECIAL)
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    merges = [" ".join(merge) for merge in _merges(tokenizer.to_str())]
    kinds = [3 if token in SPECIAL else 1 for token in tokens]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTERMEDIATE)
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
    for name, shape in _shapes(len(tokens), architecture):
        values = random.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
            continue
        quantized = gguf.quantize(values, gguf.GGMLQuantizationType.Q4_1)
        writer.add_tensor(name, quantized, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _merges(tokenizer_json: str) -> list[list[str]]:
    import json

    merges: list[list[str]] = json.loads(tokenizer_json)["model"]["merges"]
    return merges


def _shapes(vocabulary: int, architecture: str) -> list[tuple[str, tuple[int, ...]]]:
    head = HIDDEN // HEADS
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (vocabulary, HIDDEN)),
        ("output_norm.weight", (HIDDEN,)),
    ]
    for layer in range(LAYERS):
        block = {
            "attn_norm.weight": (HIDDEN,),
            "attn_q.weight": (HEADS * head, HIDDEN),
            "attn_k.weight": (KV_HEADS * head, HIDDEN),
            "attn_v.weight": (KV_HEADS * head, HIDDEN),
            "attn_output.weight": (HIDDEN, HEADS * head),
            "ffn_norm.weight": (HIDDEN,),
            "ffn_gate.weight": (INTERMEDIATE, HIDDEN),
            "ffn_up.weight": (INTERMEDIATE, HIDDEN),
            "ffn_down.weight": (HIDDEN, INTERMEDIATE),
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


@pytest.mark.parametrize(("architecture", "split"), [("llama", "smollm"), ("qwen2", "qwen2")])
def test_weights_and_logits_are_those_of_transformers(
    tmp_path: Path, architecture: str, split: str
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", architecture, split=split)
    folder = convert(file)
    expected = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32
    )
    converted = load_file(folder / "model.safetensors")
    reference = dict(expected.state_dict())
    assert set(reference) - set(converted) == {"lm_head.weight"}  # tied
    for name, tensor in converted.items():
        assert torch.equal(tensor, reference[name].to(torch.bfloat16)), name

    ids = torch.randint(len(expected.get_input_embeddings().weight), (1, 12))
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
        torch.testing.assert_close(ours(ids).logits, expected(ids).logits, rtol=0, atol=1e-4)
        ours.model.layers[0].self_attn.q_proj.weight.copy_(
            ours.model.layers[0].self_attn.q_proj.weight.flip(0)
        )
        assert (ours(ids).logits - expected(ids).logits).abs().max() > 1e-2


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
