"""Whole steps of a small decoder by one call, against its layers in float64."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.functional import gelu, silu

from engine.attention.backend import AttentionShape, KVCache
from engine.attention.native import NativeAttention
from engine.native import loading
from engine.native.library import ACTIVATIONS, BLOCK, Machine, Packed, address
from engine.request import Request, SamplingOptions
from engine.scheduling.batch import build_batch
from engine.scheduling.scheduler import Slice
from engine.scheduling.sequence import Sequence
from tests.engine.native.integers import dequantized

Machines = dict[int, Machine]
Weights = dict[str, torch.Tensor]
NORMS = ("input", "mlp", "queries", "keys", "attended", "gated")
EPSILON = 1e-6


@dataclass(frozen=True)
class Model:
    """What a decoder's layers have, and how large they are."""

    shape: AttentionShape
    hidden: int = 96
    intermediate: int = 144
    norms: tuple[str, ...] = ("input", "mlp")
    from_one: bool = False
    biased: bool = False
    activation: str = "silu"
    rotaries: tuple[int, ...] = (0, 0, 0)  # of each layer: which angles
    quantization: str | None = None
    layers: list[Weights] = field(default_factory=list)

    def drawn(self, dtype: torch.dtype) -> Model:
        """With weights that keep what they compute about as large as it is."""
        generator = torch.Generator().manual_seed(7)
        shape, keys = self.shape, self.shape.kv_heads * self.shape.head_dim
        values = shape.kv_heads * shape.stored[1][1]
        qkv = shape.heads * shape.head_dim + keys + values
        attended = shape.heads * shape.stored[1][1]
        sizes = {
            "qkv": (qkv, self.hidden),
            "output": (self.hidden, attended),
            "gate": (self.intermediate, self.hidden),
            "up": (self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }
        layers = []
        for _ in range(shape.layers):
            weights = {
                name: torch.randn(*size, generator=generator) * 1.5 * size[1] ** -0.5
                for name, size in sizes.items()
            }
            if self.biased:
                weights["bias"] = torch.randn(qkv, generator=generator)
            for name in (*self.norms, "final"):
                wide = shape.head_dim if name in ("queries", "keys") else self.hidden
                about = 0.0 if self.from_one else 1.0
                weights[name] = about + torch.randn(wide, generator=generator) / 4
            layers.append({name: weight.to(dtype) for name, weight in weights.items()})
        return replace(self, layers=layers)


def shape_of(**more: object) -> AttentionShape:
    settings = {"layers": 3, "heads": 6, "kv_heads": 2, "head_dim": 48, "scale": 48**-0.5} | more
    return AttentionShape(**settings)  # type: ignore[arg-type]


MODELS = {
    "plain": Model(shape_of()),
    "biases, and values of another size": Model(shape_of(value_dim=32), biased=True),
    "norms of heads": Model(shape_of(head_dim=64), norms=("input", "mlp", "queries", "keys")),
    "norms of all": Model(
        shape_of(windows=(9, None, 9), soft_cap=4.0),
        norms=NORMS,
        from_one=True,
        activation="gelu_tanh",
        rotaries=(1, 0, 1),
    ),
    "integers of eight bits": Model(shape_of(head_dim=32), intermediate=160, quantization="int8"),
    "integers of four bits": Model(
        shape_of(value_dim=32), intermediate=32, biased=True, quantization="int4"
    ),
    "a hidden size of odd blocks": Model(shape_of(heads=2, kv_heads=2), hidden=80, intermediate=48),
}


def angles(kind: int, length: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    places = torch.arange(length)[:, None] / (5.0 + 30 * kind) ** (torch.arange(size // 2) / 8)
    return torch.cat((places, places), 1).cos(), torch.cat((places, places), 1).sin()


def normed(x: torch.Tensor, weight: torch.Tensor, model: Model) -> torch.Tensor:
    weight = weight.double() + (1 if model.from_one else 0)
    return x * (x.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * weight


def exact(model: Model, embeddings: torch.Tensor) -> torch.Tensor:
    """A sequence's final states, all of it at once."""
    shape, length = model.shape, len(embeddings)
    size, wide, group = shape.head_dim, shape.stored[1][1], shape.heads // shape.kv_heads
    states = embeddings.double()
    for index, weights in enumerate(model.layers):
        own = {name: weight.double() for name, weight in weights.items()}
        qkv = normed(states, weights["input"], model) @ own["qkv"].T + own.get("bias", 0)
        queries, keys, values = qkv.split(
            [shape.heads * size, shape.kv_heads * size, shape.kv_heads * wide], dim=1
        )
        cosines, sines = (
            part.double()[:, None] for part in angles(model.rotaries[index], length, size)
        )
        rotated = []
        for name, part in (("queries", queries), ("keys", keys)):
            heads = part.view(length, -1, size)
            if name in weights:
                heads = normed(heads, weights[name], model)
            turned = torch.cat((-heads[..., size // 2 :], heads[..., : size // 2]), -1)
            rotated.append(heads * cosines + turned * sines)
        keys = rotated[1].repeat_interleave(group, 1)
        values = values.view(length, -1, wide).repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", rotated[0], keys) * shape.scale
        if shape.soft_cap is not None:
            scores = shape.soft_cap * torch.tanh(scores / shape.soft_cap)
        places = torch.arange(length)
        seen = places[None] <= places[:, None]
        if (left := shape.window_left(index)) >= 0:
            seen &= places[None] >= places[:, None] - left
        weighted = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        added = torch.einsum("hqk,khd->qhd", weighted, values).flatten(1) @ own["output"].T
        states = states + (normed(added, own["attended"], model) if "attended" in own else added)
        x = normed(states, weights["mlp"], model)
        act = silu if model.activation == "silu" else lambda y: gelu(y, approximate="tanh")
        added = (act(x @ own["gate"].T) * (x @ own["up"].T)) @ own["down"].T
        states = states + (normed(added, own["gated"], model) if "gated" in own else added)
    return normed(states, model.layers[-1]["final"], model)


class Decoder:
    """The library's view of a model, over pages in which nothing is."""

    def __init__(self, model: Model, dtype: torch.dtype, machine: Machine, file: Path) -> None:
        self.model, self.dtype, self.machine = model, dtype, machine
        self.cache = KVCache(model.shape, 60, 16, dtype, torch.device("cpu"))
        for layer in self.cache.layers:
            for kept in layer:
                kept.fill_(float("nan"))
        self.backend = NativeAttention(model.shape, self.cache, machine)
        stack = self.backend.stack
        stack.hidden, stack.intermediate = model.hidden, model.intermediate
        stack.activation = ACTIVATIONS[model.activation]
        machine.reserve(stack)
        self.held = []
        for index, weights in enumerate(model.layers):
            place = self.backend.layers[index]
            form = partial(Packed, quantization=model.quantization, dtype=dtype, file=file)
            packed = {
                "qkv": form([weights["qkv"]], weights.get("bias")),
                "output": form([weights["output"]]),
                "gate_up": form([weights["gate"], weights["up"]], by_turns=True),
                "down": form([weights["down"]]),
            }
            self.held.append(packed)
            for name, product in packed.items():
                setattr(place, name, product.struct)
            for name in model.norms:
                setattr(place, name, self.norm(weights[name]))
            place.rotary = model.rotaries[index]

    def meant(self) -> Model:
        """The model with what integers mean for weights, where it has them."""
        if self.model.quantization is None:
            return self.model
        layers = []
        for weights, packed in zip(self.model.layers, self.held, strict=True):
            found = {name: dequantized(one) for name, one in packed.items()}
            turns = found.pop("gate_up").view(-1, 2, BLOCK, self.model.hidden)
            found["gate"], found["up"] = turns[:, 0].flatten(0, 1), turns[:, 1].flatten(0, 1)
            layers.append(weights | found)
        return replace(self.model, layers=layers)

    def norm(self, weight: torch.Tensor) -> loading.Norm:
        return loading.Norm(
            address(weight, self.dtype, len(weight)), None, EPSILON, int(self.model.from_one)
        )

    def step(self, slices: list[Slice], embeddings: torch.Tensor, *cuts: int) -> torch.Tensor:
        """Final states of the slices' tokens; the layers in several calls, cut behind `cuts`."""
        model, states = self.model, embeddings.clone()
        tokens, size = len(states), model.shape.head_dim
        self.backend.plan(build_batch(slices, 16))
        needed = self.machine.scratch_bytes(self.backend.stack, self.backend.batch)
        self.backend._scratch = torch.empty(needed, dtype=torch.uint8)  # not a byte more
        found = torch.full_like(states, float("nan"))
        step = self.backend.step()
        step.residual = address(states, self.dtype, tokens, model.hidden)
        step.normed = address(found, self.dtype, tokens, model.hidden)
        step.final = self.norm(model.layers[-1]["final"])
        places = torch.cat([torch.arange(item.start, item.end) for item in slices])
        held = []
        for kind in set(model.rotaries):
            rows = [part[places].contiguous() for part in angles(kind, 1000, size)]
            held.append(rows)
            step.cosines[kind] = address(rows[0], torch.float32, tokens, size)
            step.sines[kind] = address(rows[1], torch.float32, tokens, size)
        for last in (*cuts, model.shape.layers):
            step.last = last
            self.machine.compute(self.backend.stack, step)
            step.first = last
        return found


LENGTHS = (1, 30, 230, 17)  # more rows than a product's piece has


def sequences() -> list[Sequence]:
    free = iter(torch.randperm(60, generator=torch.Generator().manual_seed(3)).add(1).tolist())
    return [
        Sequence(
            request=Request("r", [1] * length, SamplingOptions(max_tokens=1)),
            index=0,
            arrival=0,
            salt=b"",
            positions=torch.arange(length)[None],
            position_offset=0,
            tokens=[1] * (length + 2),
            pages=[next(free) for _ in range((length + 2) // 16 + 1)],
        )
        for length in LENGTHS
    ]


def steps(decoder: Decoder, embeddings: list[torch.Tensor]) -> list[torch.Tensor]:
    """Prompts, in two chunks, then two tokens more each: final states of every sequence."""
    own = sequences()
    found: list[list[torch.Tensor]] = [[] for _ in own]
    starts = [0] * len(own)
    for ends, cuts in (
        ([1, 14, 200, 16], ()),
        (list(LENGTHS), (1,)),
        ([length + 1 for length in LENGTHS], ()),
        ([length + 2 for length in LENGTHS], (1, 2)),
    ):
        going = [n for n in range(len(own)) if ends[n] > starts[n]]
        slices = [Slice(own[n], starts[n], ends[n]) for n in going]
        rows = torch.cat([embeddings[n][starts[n] : ends[n]] for n in going])
        parts = decoder.step(slices, rows, *cuts).split([ends[n] - starts[n] for n in going])
        for n, part in zip(going, parts, strict=True):
            found[n].append(part)
        starts = ends
    return [torch.cat(parts) for parts in found]


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of a token's states, relative to how large they are; the largest."""
    return ((found.double() - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


@pytest.mark.parametrize("name", MODELS)
def test_steps_are_those_of_the_layers(
    name: str, machines: Machines, dtype: torch.dtype, built: Path
) -> None:
    model = MODELS[name].drawn(dtype)
    generator = torch.Generator().manual_seed(1)
    embeddings = [
        torch.randn(length + 2, model.hidden, generator=generator).to(dtype) for length in LENGTHS
    ]
    decoder = Decoder(model, dtype, machines[2], built)
    model, found = decoder.meant(), steps(decoder, embeddings)
    allowed = 1e-5 if dtype == torch.float32 else 0.05
    for own, states in zip(embeddings, found, strict=True):
        assert difference(states, exact(model, own)) < allowed
    other = replace(model, layers=[weights | {"gate": weights["up"]} for weights in model.layers])
    assert difference(found[1], exact(other, embeddings[1])) > 4 * allowed
    if len(set(model.rotaries)) > 1:
        other = replace(model, rotaries=(0, 0, 1))
        assert difference(found[1], exact(other, embeddings[1])) > 2 * allowed
    for threads in (1, 5):
        again = steps(Decoder(decoder.model, dtype, machines[threads], built), embeddings)
        for one, two in zip(found, again, strict=True):
            assert torch.equal(one, two)
