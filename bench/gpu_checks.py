"""Is it right on this card: kernels against torch, the engine's logits against transformers'."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.gpu_tiny import write_tiny
from bench.reference import (
    Recorder,
    Reference,
    compare,
    engine_options,
    greedy,
    picture,
    prompt_with_images,
)
from bench.stand_in.platforms import StandIn
from engine.attention.backend import AttentionShape, KVCache
from engine.core import Engine
from engine.layers.kernels import Kernels, Norm
from engine.models.loader import LoadedModel, Progress, load_model
from engine.request import Request
from engine.running.platform import CudaPlatform, Platform
from engine.scheduling.batch import Batch

FLOAT32_TOLERANCE = 1e-3  # logits of a few; reductions run in another order than transformers'
CONTROL = 5  # a control has to miss by this many times what is allowed
Tried = CudaPlatform | StandIn
COUNTS: tuple[tuple[tuple[int, ...], str], ...] = (
    ((5, 1, 40), "prefill"),
    ((1, 1, 1, 1), "decode"),
)
Place = Callable[[torch.Tensor], torch.Tensor]  # a copy on a device
Work = Callable[[Kernels, Place, bool], Any]  # the flag: Gemma's


@dataclass(slots=True, frozen=True)
class Check:
    """One comparison: what was found, what is allowed, and whether it was meant to fail."""

    name: str
    found: float
    allowed: float
    control: bool = False

    @property
    def aim(self) -> float:
        """What `found` has to be below, or above in a control."""
        return CONTROL * self.allowed if self.control else self.allowed

    @property
    def passed(self) -> bool:
        return self.found > self.aim if self.control else self.found <= self.aim


Comparison = Callable[[], list[Check]]


def kernel_checks(
    platform: Tried, standing_in: Tried, dtype: torch.dtype
) -> Iterator[tuple[str, Comparison]]:
    """Each wrapper and kernel against the torch implementation that tests put in its place.

    What every model needs comes first. Comparing is left to the caller: one that raises says
    nothing about the others.
    """
    yield from _small_kernel_checks(platform, standing_in, dtype)
    yield "sampling", partial(_sampling_checks, platform, standing_in)

    def attention(
        title: str,
        shape: AttentionShape,
        counts: tuple[int, ...],
        kv_dtype: torch.dtype = dtype,
        spans: int = 0,
        prefill: str = "fa2",
    ) -> tuple[str, Comparison]:
        pair = (platform, standing_in)
        types = (dtype, kv_dtype)
        return title, partial(_attention_check, title, shape, counts, pair, types, spans, prefill)

    heads = ((4, 4), (8, 2), (7, 1))
    masks = itertools.product((None, 33), (None, 20.0))
    for (window, cap), head_dim, (many, few) in itertools.product(masks, (64, 128), heads):
        shape = _shape(head_dim, many, few, window, cap)
        for counts, name in COUNTS:
            title = f"{name}, heads {many}/{few} of {head_dim}, window {window}, cap {cap}"
            yield attention(title, shape, counts)
    if hopper(platform):
        for head_dim, counts in itertools.product((64, 128), ((300, 40, 700), (500, 1, 1, 600))):
            title = f"prefill of {sum(counts)} tokens by fa3, heads 28/4 of {head_dim}"
            yield attention(title, _shape(head_dim, 28, 4), counts, prefill="fa3")
    wide, fp8 = _shape(128, 8, 2), torch.float8_e4m3fn
    yield attention("prefill, fp8 pages", wide, (5, 40), fp8)
    yield attention("decode, fp8 pages", wide, (1, 1), fp8)
    for window, (counts, name) in itertools.product((None, 33), COUNTS):
        title = f"{name}, heads 8/4 of 256, window {window}"
        yield attention(title, _shape(256, 8, 4, window), counts)
    for head_dim, window in itertools.product((64, 256), (None, 9, 33)):
        title = f"both ways, heads of {head_dim}, window {window}"
        yield attention(title, _shape(head_dim, 8, 4, window), (5, 60, 33), spans=16)


def hopper(platform: Tried) -> bool:
    """Whether it has FlashInfer's `fa3`, or what stands in for it."""
    device = platform.device
    return device.type != "cuda" or torch.cuda.get_device_capability(device) == (9, 0)


def _shape(
    head_dim: int, heads: int, kv_heads: int, window: int | None = None, cap: float | None = None
) -> AttentionShape:
    return AttentionShape(
        layers=1,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        windows=(window,),
        soft_cap=cap,
    )


def _attention_check(
    name: str,
    shape: AttentionShape,
    counts: tuple[int, ...],
    pair: tuple[Tried, Tried],
    types: tuple[torch.dtype, torch.dtype],
    spans: int,
    prefill: str,
) -> list[Check]:
    """The first of `pair` is tried; `types` are of queries and of what is stored.

    `spans`: so many tokens of each sequence, from its sixth new one on, attend both ways."""
    dtype, kv_dtype = types
    lengths = [count + 30 * (index + 1) for index, count in enumerate(counts)]
    batch = _batch(list(counts), lengths, page_size=16)
    if spans:
        batch.spans = torch.full((batch.tokens, 2), -1, dtype=torch.int32)
        for start, count, length in zip(batch.query_start.tolist(), counts, lengths, strict=False):
            first = length - count + 5
            batch.spans[start + 5 : min(start + 5 + spans, start + count)] = torch.tensor(
                [first, min(first + spans, length) - 1], dtype=torch.int32
            )
    generator = torch.Generator().manual_seed(0)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    pages = 1 + len(batch.page_indices)
    stored = noise(2, pages + 1, 16, shape.kv_heads, shape.head_dim)
    tokens = sum(counts)
    parts = [noise(tokens, n, shape.head_dim) for n in (shape.heads, shape.kv_heads)]
    parts.append(noise(tokens, shape.kv_heads, shape.head_dim))
    outputs = []
    for each in pair:
        cache = KVCache(shape, pages, 16, kv_dtype, each.device)
        for part, content in zip(cache.layers[0], stored, strict=True):
            part.copy_(content.to(kv_dtype))
        backend = each.attention(shape, cache, dtype, prefill)
        backend.plan(batch)
        outputs.append(backend.run(0, *(p.to(each.device, dtype) for p in parts)).float().cpu())
    return [Check(name, _far(*outputs), _rounding(dtype))]


def _batch(counts: list[int], lengths: list[int], page_size: int) -> Batch:
    pages = [-(-length // page_size) for length in lengths]
    starts = [0, *itertools.accumulate(pages)]
    order = torch.randperm(starts[-1], generator=torch.Generator().manual_seed(1)) + 1
    tokens = sum(counts)

    def ints(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    return Batch(
        slices=[],
        token_ids=torch.zeros(tokens, dtype=torch.int64),
        positions=torch.zeros(1, tokens, dtype=torch.int64),
        slots=torch.zeros(tokens, dtype=torch.int64),
        query_start=ints([0, *itertools.accumulate(counts)]),
        page_start=ints(starts),
        page_indices=order.int(),
        last_page_length=ints([(length - 1) % page_size + 1 for length in lengths]),
        lengths=lengths,
        logit_rows=torch.zeros(0, dtype=torch.int64),
        page_size=page_size,
    )


def _small_kernel_checks(
    platform: Tried, standing_in: Tried, dtype: torch.dtype
) -> Iterator[tuple[str, Comparison]]:
    generator = torch.Generator().manual_seed(2)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    x, residual, weight = noise(9, 256), noise(9, 256), 1 + noise(256) / 10
    heads, head_weight = noise(9, 6, 64), 1 + noise(64) / 10
    angles = noise(9, 64)

    def norm(kernels: Kernels, at: Place, gemma: bool) -> Any:
        return kernels.norm(at(x), Norm(at(weight), 1e-6, gemma))

    def add_norm(kernels: Kernels, at: Place, gemma: bool) -> Any:
        return torch.cat(kernels.add_norm(at(x), at(residual), Norm(at(weight), 1e-6, gemma)))

    def gate(kernels: Kernels, at: Place, gemma: bool) -> Any:
        return kernels.gate(at(x), "gelu_tanh" if gemma else "silu")

    def norm_heads(kernels: Kernels, at: Place, gemma: bool) -> Any:
        norms = Norm(at(head_weight), 1e-6, gemma), Norm(at(1 / head_weight), 1e-6, gemma)
        return kernels.norm_heads(at(heads)[:, :5], 4, norms)  # a part of wider rows

    def rotate(kernels: Kernels, at: Place, gemma: bool) -> Any:
        there = at(heads)
        lines = torch.arange(9, dtype=torch.int32, device=there.device)
        return kernels.rotate(there[:, :5], (lines, angles.to(there.device)))

    def compare(work: Work, name: str, gemma: bool) -> list[Check]:
        outputs = []
        for each in (platform, standing_in):
            at = partial(_placed, device=each.device, dtype=dtype)
            outputs.append(work(each.kernels(), at, gemma).float().cpu())
        return [Check(name, _far(*outputs), _rounding(dtype))]

    works = [*itertools.product((norm, add_norm, gate, norm_heads), (False, True)), (rotate, False)]
    for work, gemma in works:
        name = f"{work.__name__}, Gemma's" if gemma else work.__name__
        yield name, partial(compare, work, name, gemma)


def _sampling_checks(platform: Tried, standing_in: Tried) -> list[Check]:
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(2)) * 3
    temperature = torch.tensor([0.3, 0.7, 1.0, 1.3, 2.0])
    top_k = torch.tensor([1, 5, 50, 999, 1000], dtype=torch.int32)
    top_p = torch.tensor([0.1, 0.5, 0.9, 0.99, 1.0])
    found: dict[str, list[torch.Tensor]] = {}
    for each in (platform, standing_in):
        sampling = each.library.sampling
        device = each.device
        even = sampling.softmax(logits.to(device), temperature.to(device))
        by_k = sampling.top_k_renorm_probs(even, top_k.to(device), is_deterministic=True)
        by_p = sampling.top_p_renorm_probs(even, top_p.to(device), is_deterministic=True)
        for name, values in (("softmax", even), ("top_k", by_k), ("top_p", by_p)):
            found.setdefault(name, []).append(values.float().cpu())
    checks = [
        Check(f"sampling: {name}", (ours - theirs).abs().max().item(), 1e-4)
        for name, (ours, theirs) in found.items()
    ]
    many = torch.full((4096, 4), 0.0)
    many[:] = torch.tensor([0.5, 0.3, 0.2, 0.0])
    numbers = [torch.tensor([n], device=platform.device) for n in (7, 4)]
    drawn = platform.library.sampling.sampling_from_probs(
        many.to(platform.device), seed=numbers[0], offset=numbers[1]
    )
    shares = torch.bincount(drawn.long().cpu(), minlength=4) / 4096
    far = (shares - many[0]).abs().max().item()
    return [*checks, Check("sampling: shares drawn", far, 0.03)]


def _placed(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A copy, since kernels work in place."""
    return tensor.to(device, dtype, copy=True)


def _far(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, against the size of what is expected."""
    return ((found - expected).abs().max() / expected.abs().mean()).item()


def _rounding(dtype: torch.dtype) -> float:
    """A few roundings of `dtype` at values of several times the mean."""
    return 24 * torch.finfo(dtype).eps


class DeviceReference(Reference):
    """transformers' model on the device, in any type; logits come in float32."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(folder)
        self.model.to(device, dtype)
        self._device, self._dtype = device, dtype

    @torch.no_grad()
    def logits(self, tokens: list[int], media: Any = ()) -> torch.Tensor:
        inputs = {
            name: value.to(self._device, self._dtype if value.is_floating_point() else None)
            for name, value in self._inputs(tokens, media).items()
        }
        logits: torch.Tensor = self.model(**inputs).logits[0]
        return logits.float()


def load_plainly(
    folder: str,
    dtype: str,
    device: str,
    modalities: tuple[str, ...],
    progress: Progress,
    vision_attention: str = "sdpa",
) -> LoadedModel:
    """`load_model` by way of the host, which needs no accelerate."""
    loaded = load_model(folder, dtype, "cpu", modalities, progress, vision_attention)
    loaded.model.to(device)
    return loaded


def requests_for(folder: Path, family: str) -> list[Request]:
    tokens = [(300 + 7 * i) % 500 + 20 for i in range(150)]
    prompts: list[tuple[list[int], Any]] = [(tokens[:n], []) for n in (1, 16, 33, 150)]
    if family in ("qwen2_vl", "gemma3"):
        small, large = picture(60, 90, 1), picture(200, 120, 2)
        prompts += [
            prompt_with_images(folder, [tokens[:5], small, tokens[:9]]),
            prompt_with_images(folder, [large, tokens[:20], small, tokens[:3]]),
        ]
    return [Request(f"r{i}", ids, greedy(8), media) for i, (ids, media) in enumerate(prompts)]


WAYS: dict[str, dict[str, Any]] = {
    "eager": {"graphs": False},
    "graphs": {"graphs": True},
    "graphs of prompts": {"graphs": True, "prefill_graphs": 256},
    "graphs of towers": {"graphs": True, "tower_graphs": True},
}


def model_checks(
    family: str, folder: Path, platform: Platform, dtypes: tuple[str, ...], **options: Any
) -> Iterator[Check]:
    """The engine's logits against transformers' forward on the same device.

    In float32 they must agree. In half precision both differ from the float32 forward by rounding,
    and ours may do so twice as much as transformers' own. Controls are fed wrong pages.
    """
    write_tiny(family, folder)
    exact = DeviceReference(folder, platform.device, torch.float32)
    requests = requests_for(folder, family)
    allowed = FLOAT32_TOLERANCE
    for dtype in dtypes:
        for name, changes in WAYS.items():
            if changes["graphs"] and not options.get("graphs", True):
                continue
            if changes.get("tower_graphs") and not exact.family.recorded_places:
                continue
            recorder = _run(folder, platform, requests, dtype, changes)
            found = compare(recorder, exact, requests)
            if dtype != "float32":
                rounded = DeviceReference(folder, platform.device, getattr(torch, dtype))
                allowed = 2 * _furthest(recorder, rounded, exact, requests)
            yield Check(f"{family}, {dtype}, {name}", found, allowed)
        wrong = _run(folder, platform, requests, dtype, {"graphs": False}, shuffled=True)
        allowed = max(found, FLOAT32_TOLERANCE)  # of the right pages
        found = compare(wrong, exact, requests)
        yield Check(f"{family}, {dtype}, wrong pages", found, allowed, control=True)


def _run(
    folder: Path,
    platform: Platform,
    requests: list[Request],
    dtype: str,
    changes: dict[str, Any],
    shuffled: bool = False,
) -> Recorder:
    options = engine_options(folder, dtype=dtype, max_tokens_per_step=256, **changes)
    recorder = Recorder(Engine(options, platform=platform, load=load_plainly))
    if shuffled:
        shuffle_pages(recorder.engine)
    recorder.run(*requests)
    return recorder


def shuffle_pages(engine: Engine) -> None:
    """Let every batch that is not recorded read and write the wrong pages."""
    backend = engine._runner._backend
    plan = backend.plan

    def shuffle(batch: Batch) -> None:
        batch.page_indices = batch.page_indices.flip(0)
        plan(batch)

    backend.plan = shuffle  # type: ignore[method-assign]


def _furthest(
    recorder: Recorder, rounded: Reference, exact: Reference, requests: list[Request]
) -> float:
    """How far transformers' own half precision is from its float32, on the same tokens."""
    worst = 0.0
    for request in requests:
        tokens = (request.prompt_ids + recorder.tokens[request.id, 0])[:-1]
        difference = rounded.logits(tokens, request.media) - exact.logits(tokens, request.media)
        worst = max(worst, difference.abs().max().item())
    return worst
