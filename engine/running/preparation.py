"""From options to a model that can take its first step at full speed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from engine.device.device import Device, Measured
from engine.kernels.start import as_missing
from engine.layers.vision_attention import ALL_BY_TORCH, VISION_ATTENTION
from engine.memory.card_memory import (
    GRAPH_BYTES,
    PIECE_BYTES,
    graph_sizes,
    measured_pages,
    prefill_sizes,
    tower_sizes,
)
from engine.memory.plan import PlanError, arithmetic, helpful_keys, plan, size
from engine.models.loader import LoadedModel, Progress, load_model
from engine.options import EngineOptions
from engine.parallel.ranks import Ranks
from engine.running.encoder_runner import EncoderRunner
from engine.running.exercise import (
    LARGEST,
    MOST_LOGPROBS,
    first_items,
    largest_decode,
    largest_prefill,
    pages_needed,
    shortest_prefill,
    with_prompt_rows,
    with_spans,
)
from engine.running.platform import Platform
from engine.running.runner import Runner
from engine.sampling.logprobs import LogprobRows
from engine.sampling.sampler import Sampler

Load = Callable[[str, str, str, tuple[str, ...], Progress, str], LoadedModel]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Prepared:
    """A loaded model with room for keys and values, and what chooses its tokens."""

    loaded: LoadedModel
    runner: Runner | EncoderRunner
    sampler: Sampler


def prepare(
    options: EngineOptions,
    platform: Platform,
    progress: Progress,
    load: Load = load_model,
    ranks: Ranks | None = None,
) -> Prepared:
    """Load, and on a card exercise, measure and record; of several ranks this is the first.

    Raises ModelUnsupported, PlanError where the card's memory does not suffice, KernelsMissing and
    KernelsUnfit for compiled kernels.
    """
    try:
        return _prepare(options, platform, progress, load, ranks)
    except torch.OutOfMemoryError as error:
        raise PlanError(out_of_memory(options)) from error
    except RuntimeError as error:
        missing = as_missing(error, options)
        if missing is None:
            raise
        raise missing from error


def _prepare(
    options: EngineOptions,
    platform: Platform,
    progress: Progress,
    load: Load,
    ranks: Ranks | None,
) -> Prepared:
    platform.prepare_kernels(options, progress)
    progress("loading weights", 0.0)
    by_torch = options.vision_attention == "sdpa"
    loaded = load(
        options.model_path,
        options.dtype,
        str(platform.device),
        options.modalities,
        progress,
        "sdpa" if by_torch and not options.tower_graphs else VISION_ATTENTION,
    )
    least = options.vision_attention_from if options.vision_attention == "auto" else 0
    platform.prepare_towers(loaded.model, ALL_BY_TORCH if by_torch else least)
    platform.prepare_layers(loaded, options)
    progress("preparing", 0.0)
    if loaded.family.encoder_only:
        encoder = EncoderRunner(loaded, options, platform)
        return Prepared(loaded, encoder, platform.sampler(loaded.eos_ids, encoder.vocabulary))
    pages = pages_needed(options) if platform.warms_up else options.pages
    runner = Runner(loaded, options, platform, pages, ranks)
    prepared = Prepared(loaded, runner, platform.sampler(loaded.eos_ids, runner.vocabulary))
    if not platform.warms_up:
        return prepared
    pages = options.pages
    if options.measured:
        assert isinstance(platform, Measured)
        pages = measure_pages(prepared, options, platform)
    else:
        exercise(prepared, options, platform)  # compiles what prefill and sampling need
    runner.store(pages)
    if options.graphs:
        runner.record(progress=progress)
    platform.seal_kernels(options)
    return prepared


def exercise(prepared: Prepared, options: EngineOptions, device: Device) -> None:
    """Compute the largest steps there can be; their tokens are nobody's.

    Towers encode one item each: what they have to compile waits for no request.
    """
    runner, family = prepared.runner, prepared.loaded.family
    assert isinstance(runner, Runner)
    for modality in options.modalities:
        if items := first_items(modality, options, family):
            runner.media.encode(items)
    prefill, decode = largest_prefill(options, family), largest_decode(options, family)
    rows = min(options.max_prompt_rows, prefill.tokens)
    steps = [(with_prompt_rows(prefill, rows), rows), (decode, 0)]
    steps.append((shortest_prefill(options, family), 0))
    if set(family.both_ways) & set(options.modalities):
        steps.append((with_spans(prefill), 0))
    for batch, prompt_rows in steps:
        sequences = [item.sequence for item in batch.slices]
        logits = runner.run(batch).logits
        if prompt_rows:
            chosen = device.upload(torch.zeros(prompt_rows, dtype=torch.int64))
            LogprobRows(logits[:prompt_rows], chosen, MOST_LOGPROBS, device)
        logits = logits[prompt_rows:]
        tokens = prepared.sampler.choose(logits, sequences, runner.latest)
        most = sequences[0].sampling.logprobs or 0
        LogprobRows(logits, tokens, most, device).entries([most] * len(sequences))


def measure_pages(prepared: Prepared, options: EngineOptions, platform: Measured) -> int:
    """Pages that fit beside all that was loaded, the largest step, towers and recordings."""
    runner = prepared.runner
    assert isinstance(runner, Runner)
    peak = platform.peak_bytes(lambda: exercise(prepared, options, platform))
    for modality in options.modalities:
        items = LARGEST[modality](options, prepared.loaded.family)
        if items:
            peak = max(peak, platform.peak_bytes(partial(runner.media.encode, items)))
    recordings = 0
    if options.graphs:
        free = platform.free_bytes()
        runner.record(largest=True)
        recordings = free - platform.free_bytes()
        recordings += GRAPH_BYTES * (len(graph_sizes(options.max_sequences)) - 1)
        if options.prefill_graphs:
            pieces = prepared.loaded.shape.layers + 1
            recordings += PIECE_BYTES * pieces * (len(prefill_sizes(options.prefill_graphs)) - 1)
        if options.tower_graphs:
            sizes = tower_sizes(prepared.loaded.family, options, options.max_len)
            recordings += GRAPH_BYTES * (len(sizes) - 1)
        runner.forget()
    runner.store(0)
    pages = measured_pages(
        total=platform.total_bytes(),
        free=platform.free_bytes(),
        fraction=options.memory_fraction,
        reserved=peak + recordings + options.encoder_cache_bytes,
        page_bytes=runner.page_bytes,
    )
    taken = f"a step {size(peak)}, recordings {size(recordings)}, cached media "
    taken += size(options.encoder_cache_bytes)
    if pages < -(-options.max_len // options.page_size):
        raise PlanError(
            f"beside the weights ({taken}) the card has room for {max(pages, 0)} pages of "
            f"{options.page_size} tokens, and one sequence of model.max_len={options.max_len} "
            "needs more: lower model.max_len, engine.max_tokens_per_step or engine.max_sequences, "
            "or raise engine.gpu_memory_fraction"
        )
    logger.info("KV cache: %d pages measured, %d planned (%s)", pages, options.pages, taken)
    return pages


def out_of_memory(options: EngineOptions) -> str:
    """What the card was asked to hold, and the keys that would help."""
    planned = plan(replace(options, device="cuda", kv_cache_gb=None), available_bytes=1 << 60)
    cache = size(options.pages * options.page_size * planned.kv_bytes_per_token)
    return (
        f"the card ran out of memory: {arithmetic(planned)} + KV cache {cache}: "
        f"{helpful_keys(planned)}, or see with `nvidia-smi` who else uses the card"
    )
