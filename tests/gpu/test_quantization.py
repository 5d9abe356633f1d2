"""Weights of eight bits: the product, and every family's logits; torch multiplies on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import nn

from bench.reference import (
    TOLERANCE,
    Recorder,
    Reference,
    differences,
    engine_options,
    greedy,
)
from bench.stand_in.platforms import engine_on, replayed
from engine.core import Engine
from engine.errors import ModelUnsupported
from engine.layers.fp8 import Fp8Linear
from engine.memory import mapped
from engine.memory.checkpoint import read_checkpoint
from engine.memory.plan import PlanError, plan
from engine.memory.quantization import card_unsupported, unsupported
from engine.parallel.shard import load_share
from engine.request import Request
from engine.running.platform import CudaPlatform
from tests.engine.running.test_oracle import TEXT, requests_for, words

Folder = Callable[[str], Path]
FAMILIES = [*TEXT, "qwen2_vl", "llava", "gemma3"]
STORED = torch.float8_e4m3fn


def kept(x: torch.Tensor) -> torch.Tensor:
    """What eight bits keep of each row, in x's type."""
    scale = x.double().abs().amax(-1, keepdim=True).clamp_min(1e-12) / 448
    return ((x.double() / scale).to(STORED).double() * scale).to(x.dtype)


def quantized(folder: Path, *, inputs: bool = True) -> Reference:
    """transformers' model with the products of its decoder's layers as eight bits have them."""
    reference = Reference(folder)
    for layer in reference.family.decoder(reference.model).layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = kept(module.weight.data)
                if inputs:
                    module.register_forward_pre_hook(lambda _, given: (kept(given[0]),))
    return reference


@pytest.mark.parametrize("tokens", [0, 1, 3, 17])
@pytest.mark.parametrize("rows", [16, 48, 4112])  # more than are quantized at once
def test_a_product_is_that_of_what_eight_bits_keep(tokens: int, rows: int) -> None:
    torch.manual_seed(tokens + rows)
    weight, bias, x = torch.randn(rows, 32), torch.randn(rows), torch.randn(tokens, 32)
    weight[3] *= 1e-4
    weight[5] = 0
    x[:1] *= 10
    found = Fp8Linear(weight, bias)(x)
    expected = kept(x.double()) @ kept(weight.double()).T + bias.double()
    assert found.dtype == x.dtype
    assert found.shape == (tokens, rows)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-3)
    if tokens:
        plain = x.double() @ weight.double().T + bias.double()
        assert (plain - expected).abs().max() > 0.1  # control: eight bits keep less than that


def test_a_weight_of_an_odd_size_is_refused() -> None:
    with pytest.raises(ModelUnsupported, match=r"units of 16, and there is one of 24 x 40"):
        Fp8Linear(torch.randn(24, 40))


@pytest.mark.parametrize("path", ["cuda", "cuda graphs"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_a_model_with_eight_bits(
    family: str, path: str, checkpoint: Folder
) -> None:
    """One row at least is as near as without: where no last bit of a sum was rounded otherwise.

    Eight bits make a step of such a bit, and later tokens see it: they are only nearer than what
    leaves out the rounding of weights or of inputs.
    """
    folder = checkpoint(family)
    requests = requests_for(folder, family)
    requests += [Request(f"short {i}", words(2, i), greedy(1)) for i in range(8)]
    recorder = Recorder(engine_on(path, folder, quantization="fp8", max_tokens_per_step=512))
    recorder.run(*requests)
    assert replayed(recorder.engine) == (path == "cuda graphs")

    def far(reference: Reference) -> tuple[float, float]:
        found = list(differences(recorder, reference, requests))
        return min(found), median(found)

    least, usual = far(quantized(folder))
    assert least < TOLERANCE
    for control in Reference(folder), quantized(folder, inputs=False):
        control_least, control_usual = far(control)
        assert control_least > 100 * TOLERANCE
        assert usual < 0.5 * control_usual


def test_layers_are_brought_one_by_one(checkpoint: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but what is not quantized is converted when the model is loaded."""
    loaded, load = [], mapped.load_for_quantization

    def kept_loading(*given: object, **more: object) -> object:
        loaded.append(load(*given, **more))  # type: ignore[arg-type]
        stack = loaded[0].stack
        types = {
            kind: {p.dtype for name, p in stack.named_parameters() if name.endswith(kind)}
            for kind in ("_proj.weight", "norm.weight", "embed_tokens.weight")
        }
        assert types["_proj.weight"] == {torch.float32}  # as stored
        assert types["norm.weight"] == types["embed_tokens.weight"] == {torch.bfloat16}
        return loaded[0]

    monkeypatch.setattr("engine.memory.mapped.load_for_quantization", kept_loading)
    folder = checkpoint("qwen3")
    engine = engine_on("cuda", folder, quantization="fp8", dtype="bfloat16", pages=8)
    assert loaded[0].dtype == torch.bfloat16
    layers = engine._runner._decoder._layers  # type: ignore[attr-defined]
    products = [
        product
        for layer in layers
        for product in (layer._qkv, layer._output, layer._gate_up, layer._down)
    ]
    assert {product.weight.dtype for product in products} == {STORED}
    left = [p for layer in loaded[0].stack.layers for p in layer.parameters() if p.ndim == 2]
    assert sum(matrix.numel() for matrix in left) == 0  # nothing is held twice
    found = sum(product.weight.nbytes for product in products)
    found += sum(p.nbytes for p in loaded[0].model.parameters())
    options = engine_options(folder, quantization="fp8", dtype="bfloat16", modalities=())
    planned = plan(options, available_bytes=1 << 40)
    assert planned.weights_bytes == found
    whole = plan(replace(options, quantization=None), available_bytes=1 << 40)
    assert whole.weights_bytes - found == sum(product.weight.numel() for product in products)


def test_a_share_is_left_for_its_layers_to_bring(checkpoint: Folder) -> None:
    folder = str(checkpoint("llama"))
    share = partial(load_share, folder, "bfloat16", "cpu", rank=1, ranks=2)
    for quantized_next, expected in ((True, torch.float32), (False, torch.bfloat16)):
        loaded = share(quantized=quantized_next)
        assert loaded.dtype == loaded.stack.norm.weight.dtype == torch.bfloat16
        assert loaded.stack.layers[0].mlp.up_proj.weight.dtype == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fuse": False}, "fused layers: set engine.fuse=true"),
        ({"dtype": "float16"}, "gives bfloat16, not float16: set model.dtype=bfloat16"),
        ({"decode_products": "own"}, "no products of ours: set engine.decode_products=library"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    changes: dict[str, object], reason: str, checkpoint: Folder
) -> None:
    options = engine_options(checkpoint("llama"), dtype="bfloat16", quantization="fp8")
    plan(options, available_bytes=1 << 40)
    with pytest.raises(PlanError, match=reason):
        plan(replace(options, **changes), available_bytes=1 << 40)  # type: ignore[arg-type]


def test_sizes_and_cards_that_have_no_such_products_are_refused(checkpoint: Folder) -> None:
    options = engine_options(checkpoint("llama"), dtype="bfloat16", quantization="fp8")
    sizes = read_checkpoint(options.model_path)
    odd = replace(sizes, intermediate=sizes.intermediate + 8)
    assert unsupported(options, sizes) is None
    assert "units of 16, one here has" in str(unsupported(options, odd))
    assert unsupported(replace(options, quantization=None), odd) is None
    assert card_unsupported("fp8", (8, 9)) is card_unsupported(None, (8, 0)) is None
    assert "8.9 or newer, and this one's is 8.6" in str(card_unsupported("fp8", (8, 6)))


def test_a_card_is_asked_before_products_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = object.__new__(CudaPlatform)
    platform.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ModelUnsupported, match=r"8\.9 or newer, and this one's is 8\.0"):
        platform.quantized("fp8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert platform.quantized("fp8") is Fp8Linear


def test_the_cpu_and_layers_that_are_not_fused_have_none(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("llama")
    with pytest.raises(ModelUnsupported, match="quantization=fp8 needs engine=cuda"):
        Engine(engine_options(folder, quantization="fp8"))
    with pytest.raises(ModelUnsupported, match="quantization=int8 needs engine=cpu"):
        engine_on("cuda", folder, quantization="int8")
    monkeypatch.setattr("engine.running.decoders.fusible", lambda stack: False)
    with pytest.raises(ModelUnsupported, match="those of this model are not: set"):
        engine_on("cuda", folder, quantization="fp8")
