"""Checkpoints of a GGUF file's integers: logits as transformers has them of the same file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from appliance.tasks.plan import weight_terms
from bench import widened
from bench.reference import TOLERANCE, Recorder, Reference, compare, engine_options, greedy
from bench.stand_in.platforms import PATHS, engine_on
from engine.core import Engine
from engine.errors import ModelUnsupported
from engine.layers.fuse import FusedDecoder
from engine.layers.native import NativeDecoder, NativeHead
from engine.memory.checkpoint import read_checkpoint
from engine.memory.mapped import load_stored
from engine.memory.plan import plan
from engine.memory.quantization import kept_blocks
from engine.models.documents import CheckpointBroken
from engine.models.registry import family_for
from engine.native.block_weight import BlockEmbedding, BlockWeight, widen
from engine.native.blocks import kind_of
from engine.native.library import Packed
from engine.native.loading import variants
from engine.parallel.shard import load_share
from engine.request import Request
from tests.conftest import CHECKOUT
from tests.engine.native.integers import dequantized
from tests.engine.running.test_native import hold_to_rounding, hold_to_the_last_bit
from tests.engine.running.test_oracle import words
from tests.weights.test_gguf_checkpoint import MIXES, convert, write_mix

Made = Callable[..., Path]
K_QUANTS = 3e-2  # of logits of about 1: what scales that are rounded to float16 cost at most


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The converted folder of a mix, beside its file."""
    there: dict[tuple[str, str], Path] = {}

    def folder(mix: str, architecture: str = "llama") -> Path:
        if (mix, architecture) not in there:
            file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
            there[mix, architecture] = convert(write_mix(file, mix, architecture))
        return there[mix, architecture]

    return folder


class OfFile(Reference):
    """transformers' model, of what gguf makes of the file that a folder was converted from."""

    def __init__(self, folder: Path) -> None:
        self.family = family_for(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder.parent, gguf_file="tiny.gguf", dtype=torch.float32
        ).eval()


class AsPacked(OfFile):
    """The same, with what our kernels' forms keep; `form` is what is asked for."""

    def __init__(self, folder: Path, form: str | None = None, elements: Sequence[str] = ()) -> None:
        super().__init__(folder)
        table = self.model.get_input_embeddings().weight
        head = self.model.get_output_embeddings()
        if head.weight is table:  # it stays, and the head is packed of it
            head.weight = nn.Parameter(table.data.clone())
        for stored, tensor in load_file(folder / "model.safetensors").items():
            kind = kind_of(stored)
            name = stored.removesuffix(f".weight.{kind}")
            if kind is None or name.endswith(tuple(elements)):
                continue
            weight = BlockWeight(kind, tensor, torch.float32)
            weight = weight.padded(len(weight) + -len(weight) % 16)
            module, wanted = self.model.get_submodule(name), form
            if module is self.model.get_input_embeddings():
                module = head if self.family.config["tie_word_embeddings"] else None
            if module is head and form is not None:
                wanted = "int8"
            if module is not None:
                kept = dequantized(Packed([weight], quantization=wanted)).float()
                module.weight = nn.Parameter(kept[: len(tensor)])


def requests() -> list[Request]:
    return [Request(f"r{n}", words(n, n), greedy(4)) for n in (1, 5, 33, 100)]


def recorded(folder: Path, **changes: object) -> Recorder:
    recorder = Recorder(Engine(engine_options(folder, max_tokens_per_step=96, **changes)))
    recorder.run(*requests())
    return recorder


def spoiled(reference: Reference) -> Reference:
    """With queries in the order that llama.cpp has them in."""
    queries = reference.model.model.layers[0].self_attn.q_proj
    heads = queries.weight.data.view(4, 2, -1, queries.in_features)
    queries.weight.data = heads.swapaxes(1, 2).reshape(queries.weight.shape)
    return reference


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("mix", MIXES)
def test_logits_are_those_of_the_files_values(mix: str, architecture: str, made: Made) -> None:
    folder = made(mix, architecture)
    recorder = recorded(folder)
    runner = recorder.engine._runner
    assert isinstance(runner._decoder, NativeDecoder)
    assert isinstance(runner._head, NativeHead)
    assert isinstance(runner._embed, BlockEmbedding)
    exact, products = OfFile(folder), any("_K" in each for each in kinds_in(folder))
    assert compare(recorder, exact, requests()) < (K_QUANTS if products else TOLERANCE)
    packed = AsPacked(folder, elements=WIDENED if mix == "no form in common" else ())
    assert compare(recorder, packed, requests()) < TOLERANCE
    assert compare(recorder, spoiled(exact), requests()) > 10 * K_QUANTS


WIDENED = (  # beside a part of the same product that is another's
    "layers.0.self_attn.q_proj",
    "layers.0.self_attn.k_proj",
    "layers.1.mlp.gate_proj",
    "layers.1.mlp.up_proj",
)


def kinds_in(folder: Path) -> set[str]:
    return {kind for kind in map(kind_of, load_file(folder / "model.safetensors")) if kind}


@pytest.mark.parametrize("variant", variants()[1:])
@pytest.mark.parametrize("mix", ["q4_1", "q4_k_m", "q5_k_m"])
def test_every_variant_has_them(variant: str, mix: str, made: Made) -> None:
    folder = made(mix)
    recorder = recorded(folder, native=variant, threads=2)
    assert compare(recorder, AsPacked(folder), requests()) < TOLERANCE


@pytest.mark.parametrize("mix", ["q4_1", "q4_k_m"])
def test_bfloat16_is_as_near_as_transformers_own(mix: str, made: Made) -> None:
    folder = made(mix)
    exact = OfFile(folder)
    rounded = AutoModelForCausalLM.from_pretrained(
        folder.parent, gguf_file="tiny.gguf", dtype=torch.bfloat16
    )
    hold_to_rounding(Engine(engine_options(folder, dtype="bfloat16")), exact, rounded)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_row_is_the_same_whatever_runs_beside_it(dtype: str, made: Made) -> None:
    hold_to_the_last_bit(made("q4_k_m"), neighbours=(0, 2, 11), dtype=dtype)


@pytest.mark.parametrize(
    "changes", [{"native": "torch"}, {"fuse": False}, {"native": "torch", "fuse": False}]
)
@pytest.mark.parametrize("mix", ["q4_1", "q4_k_m"])
def test_where_torch_computes_they_are_widened(
    mix: str, changes: dict[str, object], made: Made
) -> None:
    folder = made(mix)
    recorder = recorded(folder, **changes)
    assert not isinstance(recorder.engine._runner._decoder, NativeDecoder)
    assert compare(recorder, OfFile(folder), requests()) < TOLERANCE
    assert plan(engine_options(folder, **changes), 1 << 40).fewer_bits is None


@pytest.mark.parametrize("path", [path for path in PATHS if path.startswith("cuda")])
def test_where_a_card_computes_they_are_widened(path: str, made: Made) -> None:
    folder = made("q4_k_m")
    recorder = Recorder(engine_on(path, folder, max_tokens_per_step=96))
    recorder.run(*requests())
    assert compare(recorder, OfFile(folder), requests()) < TOLERANCE
    options = engine_options(folder, device="cuda")
    assert kept_blocks(options, read_checkpoint(folder)) is None


def test_what_is_widened_goes_to_a_device_but_for_layers_that_widen_their_own(made: Made) -> None:
    model = load_stored(str(made("q4_1")), "bfloat16", "cpu").model
    table = model.get_input_embeddings()
    layers = {id(parameter) for parameter in model.model.layers.parameters()}
    widen(model, "meta", layers)
    left = [each for each in model.parameters() if isinstance(each, BlockWeight)]
    assert len(left) == 7 * len(model.model.layers)
    assert table.weight.device.type == "meta"
    assert model.get_output_embeddings().weight is table.weight
    widen(model)
    assert not any(isinstance(each, BlockWeight) for each in model.parameters())
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("mix", ["q4_1", "q4_k_m"])
def test_ranks_have_their_shares_of_what_they_mean(mix: str, made: Made) -> None:
    folder, reference = made(mix), OfFile(made(mix)).model.state_dict()
    shares = [load_share(str(folder), "float32", "cpu", rank=rank, ranks=2) for rank in (0, 1)]
    for name, parameter in shares[0].model.named_parameters():
        parts = [parameter, shares[1].model.get_parameter(name)]
        assert not isinstance(parameter, BlockWeight)
        if parameter.ndim == 1 and "bias" not in name:
            assert torch.equal(parts[0], reference[name])
            continue
        along = 1 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0
        whole = torch.cat(parts, along)[: len(reference[name])]  # the vocabulary is padded
        assert torch.equal(whole, reference[name]), name
        assert not torch.equal(torch.cat(parts[::-1], along)[: len(whole)], reference[name])


def test_layers_of_no_known_pattern_are_widened(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.running.cpu_platform.fusible", lambda stack: False)
    folder = made("q4_1")
    recorder = recorded(folder)
    assert isinstance(recorder.engine._runner._decoder, FusedDecoder)
    assert compare(recorder, OfFile(folder), requests()) < TOLERANCE


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("mix", ["q8_0", "q4_1", "q4_k_m"])
def test_other_integers_are_made_where_they_are_asked_for(mix: str, form: str, made: Made) -> None:
    """Of what the file's mean; and they stay where they are such."""
    folder = made(mix)
    options = engine_options(folder, quantization=form, modalities=())
    engine = Engine(options)
    decoder, head = engine._runner._decoder, engine._runner._head
    assert isinstance(decoder, NativeDecoder)
    assert isinstance(head, NativeHead)
    packed = [one for one in decoder._held if isinstance(one, Packed)]
    assert {one.form for one in packed} == {form}
    assert head._packed.form == "int8"
    recorder = Recorder(engine)
    recorder.run(*requests())
    assert compare(recorder, AsPacked(folder, form), requests()) < TOLERANCE
    apart = compare(recorder, OfFile(folder), requests())
    assert apart < TOLERANCE if (mix, form) in EXACT else apart > 3 * TOLERANCE
    assert plan(options, 1 << 40).fewer_bits == (
        "layers and head in int8" if form == "int8" else "layers in int4, head in int8"
    )


EXACT = (("q8_0", "int8"), ("q4_1", "int4"))


def test_peers_get_what_they_mean(made: Made, tmp_path: Path) -> None:
    folder, out = made("q4_k_m"), tmp_path / "wide"
    assert widened.main([str(folder), str(out), "--dtype", "float32"]) == 0
    reference = OfFile(folder).model.state_dict()
    found = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    assert found.keys() == reference.keys()
    assert all(torch.equal(found[name], reference[name]) for name in found)
    assert not torch.equal(found["lm_head.weight"], reference["model.embed_tokens.weight"])
    with pytest.raises(SystemExit):
        widened.main([str(folder), str(folder)])


WORDS = {
    "q4_1": "as stored: layers in Q4_1, embeddings and head in Q8_0",
    "q4_k_m": "as stored: layers in Q4_K and Q6_K, embeddings in Q4_K, head in Q6_K",
    "no form in common": (
        "as stored: layers in Q4_K and Q6_K, embeddings and head in Q4_K, some widened"
    ),
}


@pytest.mark.parametrize("mix", WORDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_planned_is_what_is_held(mix: str, dtype: str, made: Made) -> None:
    """Products in the kernels' forms, the table as it is mapped, nothing of it twice."""
    folder = made(mix)
    options = engine_options(folder, dtype=dtype)
    runner = Engine(options)._runner
    decoder, head, model = runner._decoder, runner._head, runner.loaded.model
    assert isinstance(decoder, NativeDecoder)
    assert isinstance(head, NativeHead)
    table = model.get_input_embeddings().weight
    assert isinstance(table, BlockWeight)
    tied = model.get_output_embeddings().weight is table
    others = [each for each in model.parameters() if not isinstance(each, BlockWeight)]
    held = sum(one.nbytes for one in decoder._held if isinstance(one, Packed))
    held += sum(each.nbytes for each in others) + table.blocks.nbytes
    rows = head._packed.out / head.out_features  # the plan knows of no padding
    planned, last = plan(options, 1 << 40), head._packed.nbytes / rows
    assert planned.weights_bytes == pytest.approx(held + (0 if tied else last), abs=2)
    assert planned.fewer_bits == WORDS[mix]
    assert f" parameters, {WORDS[mix]}, others x" in weight_terms(planned)
    whole = plan(replace(options, native="torch"), 1 << 40)
    assert whole.weights_bytes > 1.5 * planned.weights_bytes
    assert whole.slack_bytes > planned.slack_bytes


@pytest.mark.parametrize("name", ["layers.1.mlp.down_proj.weight.Q6_K", "lm_head.weight.Q6_K"])
def test_a_damaged_scale_is_told_in_one_line(name: str, made: Made, tmp_path: Path) -> None:
    tensors = load_file(made("q4_k_m") / "model.safetensors")
    name = next(each for each in tensors if each.endswith(name))
    tensors[name][7, 208:210] = torch.from_numpy(np.array([np.nan], np.float16).view(np.uint8))
    folder = changed(made("q4_k_m"), tmp_path, tensors)
    with pytest.raises(ModelUnsupported, match="no numbers, or infinite: the GGUF") as fault:
        Engine(engine_options(folder))
    assert "\n" not in str(fault.value)


def changed(folder: Path, copy: Path, tensors: dict[str, torch.Tensor]) -> Path:
    for file in folder.glob("*.json"):
        (copy / file.name).write_bytes(file.read_bytes())
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        (torch.zeros(256, 143, dtype=torch.uint8), "is no matrix of blocks of Q4_K"),
        (torch.zeros(256, dtype=torch.uint8), "is no matrix of blocks of Q4_K"),
        (torch.zeros(256, 0, dtype=torch.uint8), "is no matrix of blocks of Q4_K"),
        (torch.zeros(256, 144, dtype=torch.int8), "is no matrix of blocks of Q4_K"),
        (torch.zeros(256, 288, dtype=torch.uint8), "has another shape there"),
        (torch.zeros(240, 144, dtype=torch.uint8), "has another shape there"),
    ],
    ids=["cut block", "no rows", "no blocks", "signed", "wide", "short"],
)
def test_blocks_of_another_size_are_refused(
    blocks: torch.Tensor, reason: str, made: Made, tmp_path: Path
) -> None:
    tensors = load_file(made("q4_k_m") / "model.safetensors")
    tensors["model.layers.0.self_attn.o_proj.weight.Q4_K"] = blocks
    folder = changed(made("q4_k_m"), tmp_path, tensors)
    with pytest.raises((CheckpointBroken, ModelUnsupported), match=reason) as fault:
        load_stored(str(folder), "float32", "cpu")
    if "no matrix" in reason:
        with pytest.raises(CheckpointBroken, match=reason):
            plan(engine_options(folder), 1 << 40)
    assert "\n" not in str(fault.value)


def test_a_weight_that_is_there_twice_is_refused(made: Made, tmp_path: Path) -> None:
    tensors = load_file(made("q4_k_m") / "model.safetensors")
    tensors["model.layers.0.self_attn.o_proj.weight"] = torch.zeros(256, 256)
    folder = changed(made("q4_k_m"), tmp_path, tensors)
    with pytest.raises(CheckpointBroken, match="twice, as integers and otherwise"):
        plan(engine_options(folder), 1 << 40)


def test_planning_imports_no_torch(made: Made) -> None:
    code = (
        "import sys\nfrom engine.memory.checkpoint import read_checkpoint\n"
        "assert read_checkpoint(sys.argv[1]).blocks.kinds == ('Q4_1',)\n"
        "print(sorted({'torch', 'transformers', 'gguf'} & sys.modules.keys()))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(made("q4_1"))],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"
