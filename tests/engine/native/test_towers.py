"""Layers of towers by the library, against transformers' own in float64."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, SiglipVisionConfig, WhisperConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLVisionBlock
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from engine.layers.native_towers import compute_towers
from engine.models.loader import load_model
from engine.models.registry import FAMILIES
from engine.native.library import Machine
from engine.native.loading import variants

LENGTHS = (1, 200, 70, 3)  # of pictures side by side: a row alone, and more than a piece has
HEARD = (150, 7)  # of sounds that are filled up
EXACT = 2e-5  # of the largest value: what float32 rounds to in two layers


class Tower(nn.Module):
    """Two layers, with what a model has beside its towers."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.text = nn.Linear(16, 16)

    def get_output_embeddings(self) -> nn.Module:
        return self.text

    get_input_embeddings = get_output_embeddings


def tower(make: Callable[[], nn.Module]) -> Tower:
    """With random numbers everywhere, also where layers begin with zeros and ones."""
    torch.manual_seed(3)
    made = Tower([make(), make()]).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.15)
    return made


def attended(config: Any) -> Any:
    config._attn_implementation = "eager"
    return config


def patches(heads: int, hidden: int, activation: str = "quick_gelu") -> nn.Module:
    config = Qwen2VLVisionConfig(embed_dim=hidden, num_heads=heads, hidden_act=activation)
    return Qwen2VLVisionBlock(attended(config))


def clip(activation: str = "quick_gelu") -> nn.Module:
    sizes = {"hidden_size": 48, "intermediate_size": 112, "num_attention_heads": 2}
    return CLIPEncoderLayer(attended(CLIPVisionConfig(**sizes, hidden_act=activation)))


def siglip() -> nn.Module:
    sizes = {"hidden_size": 144, "intermediate_size": 304, "num_attention_heads": 2}
    return SiglipEncoderLayer(attended(SiglipVisionConfig(**sizes)))


def whisper() -> nn.Module:
    sizes = {"d_model": 64, "encoder_attention_heads": 4, "encoder_ffn_dim": 96}
    return WhisperEncoderLayer(attended(WhisperConfig(**sizes)))


def angles(rows: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    turned = torch.arange(rows)[:, None] * torch.linspace(1, 0.1, size // 2).repeat(2)
    return turned.cos(), turned.sin()


def patch_inputs(hidden: int, size: int) -> dict[str, Any]:
    rows = sum(LENGTHS)
    starts = torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return {
        "hidden_states": torch.randn(rows, hidden),
        "cu_seqlens": starts,
        "position_embeddings": angles(rows, size),
    }


def row_inputs(hidden: int) -> dict[str, Any]:
    return {"hidden_states": torch.randn(2, 230, hidden), "attention_mask": None}


def sound_inputs() -> dict[str, Any]:
    rows = max(HEARD)
    seen = torch.arange(rows) < torch.tensor(HEARD)[:, None]
    mask = seen[:, None, None].expand(-1, -1, rows, -1)
    return {"hidden_states": torch.randn(2, rows, 64), "attention_mask": mask}


Case = tuple[Callable[[], nn.Module], Callable[[], dict[str, Any]]]
CASES: dict[str, Case] = {
    "qwen2_vl": (lambda: patches(4, 64), lambda: patch_inputs(64, 16)),
    "qwen2_vl, padded heads": (lambda: patches(2, 48), lambda: patch_inputs(48, 24)),
    "qwen2_vl, silu": (lambda: patches(4, 64, "silu"), lambda: patch_inputs(64, 16)),
    "clip": (clip, lambda: row_inputs(48)),
    "clip, gelu": (lambda: clip("gelu"), lambda: row_inputs(48)),
    "siglip": (siglip, lambda: row_inputs(144)),
    "whisper": (whisper, sound_inputs),
}


def run(layers: nn.Module, inputs: dict[str, Any], dtype: torch.dtype) -> torch.Tensor:
    """Both layers, in float64."""
    given = dict(inputs)
    states = given.pop("hidden_states").to(dtype)
    if "position_embeddings" in given:
        given["position_embeddings"] = tuple(
            each.to(dtype) for each in inputs["position_embeddings"]
        )
    mask = given.get("attention_mask")
    if mask is not None and dtype == torch.float64:  # eager attention adds it
        given["attention_mask"] = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -1e30)
    with torch.inference_mode():
        for layer in layers.layers:  # type: ignore[union-attr]
            states = layer(states, **given)
    return states.double().flatten(0, -2)


@pytest.mark.parametrize("name", CASES)
def test_layers_are_those_of_transformers(
    name: str, machines: dict[int, Machine], dtype: torch.dtype
) -> None:
    make, inputs_of = CASES[name]
    made = tower(make).to(dtype)
    inputs = inputs_of()
    inputs["hidden_states"] = inputs["hidden_states"].to(dtype)
    wide = deepcopy(made).double()
    expected = run(wide, inputs, torch.float64)
    allowed = EXACT * float(expected.abs().max())
    if dtype == torch.bfloat16:  # what rounding costs torch
        allowed = 1.5 * float((run(made, inputs, dtype) - expected).abs().max())
    for threads, machine in machines.items():
        native = deepcopy(made)
        assert compute_towers(native, native.text, machine)
        assert all(len(layer_.weight) == 0 for layer_ in products_of(native.layers))
        found = run(native, inputs, dtype)
        assert (found - expected).abs().max() < allowed, threads
    with torch.no_grad():  # a layer that has another number in one place is told from it
        list(made.layers[1].parameters())[-1][0] += 40 * allowed
    compute_towers(made, made.text, machines[1])
    assert (run(made, inputs, dtype) - expected).abs().max() > allowed


def products_of(module: nn.Module) -> list[nn.Linear]:
    return [each for each in module.modules() if isinstance(each, nn.Linear)]


def test_a_picture_is_the_same_whatever_is_beside_it(machines: dict[int, Machine]) -> None:
    """To the last bit; not by a matrix unit, which multiplies few rows otherwise than many."""
    machine = machines[2]
    if machine.variant == "amx":
        pytest.skip("its sums depend on how many rows there are")
    made = tower(lambda: patches(4, 64))
    compute_towers(made, made.text, machine)
    inputs = patch_inputs(64, 16)
    beside = run(made, inputs, torch.float32)
    first = sum(LENGTHS[:2])
    rows = slice(first, first + LENGTHS[2])
    alone = {
        "hidden_states": inputs["hidden_states"][rows],
        "cu_seqlens": torch.tensor([0, LENGTHS[2]], dtype=torch.int32),
        "position_embeddings": tuple(each[rows] for each in inputs["position_embeddings"]),
    }
    assert torch.equal(run(made, alone, torch.float32), beside[rows])
    together = {**inputs, "cu_seqlens": torch.tensor([0, sum(LENGTHS)], dtype=torch.int32)}
    assert not torch.equal(run(made, together, torch.float32)[rows], beside[rows])


@pytest.mark.parametrize("family", sorted({entry.split(":")[0] for entry in FAMILIES} - {"text"}))
def test_all_of_a_familys_tower_is_the_librarys(family: str, checkpoint: Any) -> None:
    folder = checkpoint(family)
    loaded = load_model(str(folder), "float32", "cpu", ("image", "video", "audio"))
    assert compute_towers(loaded.model, loaded.stack, Machine(variants()[0], 2))
    text = {id(module) for module in loaded.stack.modules()}
    text.add(id(loaded.model.get_output_embeddings()))
    left = [
        name
        for name, module in loaded.model.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in text and len(module.weight)
    ]
    assert left == []


def test_a_layer_without_kernels_stays_torchs(machines: dict[int, Machine]) -> None:
    made = tower(lambda: patches(4, 64, "tanh"))
    inputs = patch_inputs(64, 16)
    expected = run(deepcopy(made).double(), inputs, torch.float64)
    assert not compute_towers(made, made.text, machines[1])
    found = run(made, inputs, torch.float32)
    assert (found - expected).abs().max() < EXACT * expected.abs().max()


def test_a_mask_of_another_kind_is_refused(machines: dict[int, Machine]) -> None:
    made = tower(whisper)
    compute_towers(made, made.text, machines[1])
    inputs = sound_inputs()
    inputs["attention_mask"] = inputs["attention_mask"].float()
    with pytest.raises(ValueError, match="whether it is seen"):
        made.layers[0](**inputs)


@pytest.mark.parametrize(
    ("conv", "shape", "taken"),
    [
        (nn.Conv2d(3, 32, 14, 14), (2, 3, 56, 42), True),
        (nn.Conv2d(3, 32, 14, 14, padding="valid", bias=False), (2, 3, 56, 56), True),
        (nn.Conv3d(3, 32, (2, 14, 14), (2, 14, 14), bias=False), (5, 3, 2, 14, 14), True),
        (nn.Conv2d(3, 32, 14, 7), (2, 3, 56, 56), False),  # each input more than once
        (nn.Conv2d(3, 32, 14, 14, padding=7), (2, 3, 56, 56), False),
        (nn.Conv2d(3, 33, 14, 14), (2, 3, 56, 56), False),  # of no whole blocks
    ],
    ids=str,
)
def test_patches_are_cut_by_a_product(
    conv: nn.Module, shape: tuple[int, ...], taken: bool, machines: dict[int, Machine]
) -> None:
    made = Tower([deepcopy(conv)])
    x = torch.randn(shape)
    with torch.inference_mode():
        expected = deepcopy(conv).double()(x.double())
        compute_towers(made, made.text, machines[1])
        found = made.layers[0](x)
    assert (len(made.layers[0].weight) == 0) == taken  # type: ignore[arg-type]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5
