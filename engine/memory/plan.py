"""What fits: the memory of a model before it is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from engine.attention.limits import unsupported
from engine.device.cards import card
from engine.device.host_memory import available_memory, cpu_has_native
from engine.errors import EngineError
from engine.memory import card_memory, quantization
from engine.memory.checkpoint import ITEMSIZE, Checkpoint, read_checkpoint, tensor_shapes
from engine.memory.shares import share_of, undivided
from engine.memory.stored import check_stored
from engine.models.family import Family, StateSizes
from engine.models.registry import family_for
from engine.native.loading import DTYPES
from engine.options import PROMPT_ROWS, EngineOptions
from engine.scheduling.admission import span_admission

GIB = 1 << 30
KV_SHARE = 0.25  # of what is left, when nobody says how large the KV cache is
SLACK_SHARE = 0.1  # of the weights: allocator rounding, prepacked copies
KV_ITEMSIZE = ITEMSIZE | {"float8_e4m3fn": 1}
PROCESS_BYTES = GIB // 2  # interpreter and libraries of the engine process


class PlanError(EngineError):
    """The model cannot run as configured; the message has the arithmetic and the keys that help."""

    correctable = True


@dataclass(slots=True, frozen=True)
class Plan:
    """Memory of one engine in bytes. One page more than `pages` is held: page 0 takes padding.

    Of an engine of several ranks all but `parameters` is what rank 0 takes, which takes the most.
    """

    options: EngineOptions  # as they were asked for
    architecture: str
    parameters: int
    rank_parameters: int
    weights_bytes: int
    slack_bytes: int
    activation_bytes: int
    encoder_bytes: int
    encoder_cache_bytes: int
    kv_bytes: int
    kv_bytes_per_token: int
    pages: int
    max_len: int
    available_bytes: int
    states: StateSizes | None = None  # of what the decoder attends to across
    state_pages: int = 0
    state_page_bytes: int = 0
    fewer_bits: str | None = None  # in words, which weights are of fewer than `dtype` has

    @property
    def resolved(self) -> EngineOptions:
        """The options with what was found: an engine is made of them."""
        return replace(
            self.options,
            pages=self.pages,
            state_pages=self.state_pages,
            max_len=self.max_len,
            encoder_cache_bytes=self.encoder_cache_bytes,
        )

    @property
    def dtype(self) -> str:
        return self.options.dtype

    @property
    def page_size(self) -> int:
        return self.options.page_size

    @property
    def max_sequences(self) -> int:
        return self.options.max_sequences

    @property
    def ranks(self) -> int:
        return self.options.tensor_parallel

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.options.modalities

    @property
    def tower(self) -> str:
        """What the towers of its modalities are called."""
        return "audio tower" if self.modalities == ("audio",) else "image tower"

    @property
    def tokens(self) -> int:
        return self.pages * self.page_size

    @property
    def total_bytes(self) -> int:
        return self.fixed_bytes + self.kv_bytes + self.state_bytes

    @property
    def state_bytes(self) -> int:
        """Of the cache for what is attended to across."""
        return (self.state_pages + 1) * self.state_page_bytes if self.state_pages else 0

    @property
    def fixed_bytes(self) -> int:
        """Everything but the KV cache."""
        fixed = self.weights_bytes + self.slack_bytes + self.activation_bytes
        return fixed + self.encoder_bytes + self.encoder_cache_bytes

    def concurrency(self, length: int) -> int:
        """How many sequences of `length` tokens, none of them shared, can run at once."""
        most = min(self.max_sequences, self.pages // math.ceil(length / self.page_size))
        return most if self.states is None else min(most, self.state_pages // self.states.pages)


def plan(options: EngineOptions, available_bytes: int | None = None) -> Plan:
    """Plan the memory of an engine; `options.dtype` is resolved (see `resolve_dtype`).

    With `tensor_parallel` it is that of one rank. On the CPU each rank may take its part of what is
    available, on `cuda` the card is asked what is free, unless `available_bytes` says what one may
    take. Raises DeviceMissing when there is no card, PlanError with the arithmetic when it cannot
    fit or be split, ModelUnsupported when `options.model_path` is no checkpoint of a known family.
    """
    family = family_for(options.model_path)
    checkpoint = read_checkpoint(options.model_path, family)
    length = options.max_len or checkpoint.positions
    check(options, checkpoint, family, length)
    check_stored(checkpoint, tensor_shapes(family.folder), family.tower_prefixes)
    share = share_of(checkpoint, options.tensor_parallel)
    states = family.state_sizes()
    towers = checkpoint.tower_parameters if options.modalities else 0
    weights = quantization.weights_bytes(options, share, towers)
    if family.encoder_only:
        share = replace(share, vocabulary=0)  # it has no logits
    on_device = on_cpu if options.device == "cpu" else on_card
    there = on_device(options, share, weights, length, available_bytes)
    without_cache = Plan(
        options=options,
        architecture=checkpoint.architecture,
        parameters=checkpoint.decoder_parameters + towers,
        rank_parameters=share.decoder_parameters + towers,
        weights_bytes=weights,
        slack_bytes=there.slack,
        activation_bytes=there.activations,
        encoder_bytes=encoder_bytes(options, family, length),
        encoder_cache_bytes=options.encoder_cache_bytes if options.modalities else 0,
        kv_bytes=0,
        kv_bytes_per_token=0
        if family.encoder_only
        else 2
        * share.layers
        * share.kv_heads
        * share.head_dim
        * KV_ITEMSIZE[options.kv_dtype or options.dtype],
        pages=0,
        max_len=length,
        available_bytes=there.available,
        states=states,
        state_page_bytes=0 if states is None else state_page_bytes(states, options.dtype),
        fewer_bits=quantization.in_words(options, checkpoint),
    )
    return without_kv_cache(without_cache) if family.encoder_only else with_kv_cache(without_cache)


def check(options: EngineOptions, checkpoint: Checkpoint, family: Family, length: int) -> None:
    """Raise PlanError for what this checkpoint does not have, or cannot do in such steps."""
    for modality in options.modalities:
        if modality not in checkpoint.modalities:
            plural = modality if modality == "audio" else f"{modality}s"
            raise PlanError(
                f"{checkpoint.architecture} takes no {plural}: set media.{modality}.limit=0"
            )
    if options.tower_graphs and not (options.modalities and family.recorded_places):
        why = (
            f"{checkpoint.architecture}'s takes items of any length, one after another"
            if options.modalities
            else "no request may bring what takes one"
        )
        raise PlanError(
            f"engine.tower_graphs=true records a tower, and {why}: set engine.tower_graphs=false"
        )
    if family.encoder_only:
        check_encoder(options, checkpoint.architecture, length)
    if length > checkpoint.positions:
        raise PlanError(
            f"model.max_len={length} is more than the model's {checkpoint.positions} positions: "
            f"set model.max_len={checkpoint.positions}, or null"
        )
    reasons = [
        span_admission(
            family.most_tokens(modality, length),
            options.max_tokens_per_step,
            options.max_sequences,
        )
        for modality in options.modalities
        if modality in family.both_ways
    ]
    ranks = options.tensor_parallel
    reasons.append(undivided(checkpoint.heads, checkpoint.kv_heads, checkpoint.intermediate, ranks))
    reasons.append(quantization.unsupported(options, checkpoint))
    if family.state_sizes() is not None:
        reasons += across_lacks(options)
    for reason in reasons:
        if reason is not None:
            raise PlanError(reason)


def check_encoder(options: EngineOptions, architecture: str, length: int) -> None:
    """Raise PlanError for settings of what a model that only encodes does not have."""
    wrong = {
        "engine.device=cuda": (options.device != "cpu", "set engine=cpu"),
        f"parallelism.tensor={options.tensor_parallel}": (
            options.tensor_parallel > 1,
            "set parallelism.tensor=1",
        ),
        f"engine.native={options.native}": (
            options.native not in ("auto", "torch"),
            "set engine.native=auto",
        ),
        f"model.quantization={options.quantization}": (
            options.quantization is not None,
            quantization.OFF,
        ),
        f"engine.speculation={options.speculation}": (
            options.speculation is not None,
            "set engine.speculation=null",
        ),
        f"engine.kv_cache_gb={options.kv_cache_gb}": (
            options.kv_cache_gb is not None,
            "set engine.kv_cache_gb=null",
        ),
    }
    for key, (asked, instead) in wrong.items():
        if asked:
            raise PlanError(
                f"{key} is for models that generate, and {architecture} encodes: {instead}"
            )
    if length > options.max_tokens_per_step:
        raise PlanError(
            f"{architecture} takes a prompt whole: with model.max_len={length} that needs "
            f"engine.max_tokens_per_step={length}, not {options.max_tokens_per_step}"
        )


def across_lacks(options: EngineOptions) -> list[str]:
    """What a decoder that attends across does not have of what is asked for."""
    asked = {
        "engine.graphs=true": options.graphs
        and "is of steps that attend to tokens alone: set engine.graphs=false",
        "engine.kv_dtype=fp8": options.kv_dtype is not None
        and "stores tokens alone: set engine.kv_dtype=auto",
        f"parallelism.tensor={options.tensor_parallel}": options.tensor_parallel > 1
        and "splits no layers that attend across: set parallelism.tensor=1",
        f"model.quantization={options.quantization}": options.quantization is not None
        and "is of fused layers, and those that attend across are not: set model.quantization=null",
    }
    return [f"{name} {why}" for name, why in asked.items() if why]


@dataclass(slots=True, frozen=True)
class OnDevice:
    """What depends on where the model runs, in bytes."""

    slack: int
    activations: int
    available: int


def on_cpu(
    options: EngineOptions,
    checkpoint: Checkpoint,
    weights: int,
    length: int,
    available_bytes: int | None,
) -> OnDevice:
    itemsize = ITEMSIZE[options.dtype]
    slack = int(weights * SLACK_SHARE) + PROCESS_BYTES
    slack += quantization.tied_head_bytes(options, checkpoint)
    activations = activation_bytes(
        checkpoint, itemsize, options.max_tokens_per_step, options.max_sequences, length
    )
    if available_bytes is None:
        available_bytes = available_memory() // options.tensor_parallel
    return OnDevice(slack, activations, available_bytes)


def on_card(
    options: EngineOptions,
    checkpoint: Checkpoint,
    weights: int,
    length: int,
    available_bytes: int | None,
) -> OnDevice:
    reason = unsupported(options.dtype, checkpoint.head_dim)
    if reason is not None:
        raise PlanError(reason)
    sequences = options.max_sequences
    slack = card_memory.overhead_bytes(checkpoint, weights, sequences, options.graphs)
    slack += card_memory.prefill_graph_bytes(
        checkpoint, ITEMSIZE[options.dtype], options.prefill_graphs
    )
    activations = card_memory.activation_bytes(
        checkpoint, ITEMSIZE[options.dtype], options.max_tokens_per_step, sequences
    )
    if available_bytes is None:
        there = card()
        available_bytes = card_memory.usable_bytes(
            there.total_bytes, there.free_bytes, options.memory_fraction
        )
    return OnDevice(slack, activations, available_bytes)


def encoder_bytes(options: EngineOptions, family: Family, length: int) -> int:
    """Most bytes alive in a tower: one layer's tensors for all patches or frames in it at once.

    On a card those of its recordings come to it.
    """
    itemsize, most = ITEMSIZE[options.dtype], 0
    for modality in options.modalities:
        hidden, intermediate = family.tower_width(modality)
        places = family.tower_places(modality, length, options.max_tokens_per_step)
        most = max(most, places * (8 * hidden + 2 * intermediate) * itemsize)
    if options.tower_graphs:
        most += card_memory.tower_graph_bytes(family, options, itemsize, length)
    return most


def without_kv_cache(plan: Plan) -> Plan:
    """The plan of a model that keeps nothing: pages for all that may run, of no bytes."""
    if plan.fixed_bytes > plan.available_bytes:
        raise PlanError(
            f"{arithmetic(plan)} = {size(plan.fixed_bytes)}, but {size(plan.available_bytes)} are "
            f"available: {helpful_keys(plan)}"
        )
    return replace(plan, pages=plan.max_sequences * math.ceil(plan.max_len / plan.page_size))


def with_kv_cache(plan: Plan) -> Plan:
    """The plan with as many pages as were asked for, or as there is room for.

    On a card the room is all that is left: more pages keep more prefixes.
    """
    kv_cache_gb, everything = plan.options.kv_cache_gb, plan.options.device == "cuda"
    page_bytes = plan.kv_bytes_per_token * plan.page_size
    one = math.ceil(plan.max_len / plan.page_size)
    left = plan.available_bytes - plan.fixed_bytes
    if kv_cache_gb is None:
        room = int(max(left, 0) * (1.0 if everything else KV_SHARE))
    else:
        room = int(kv_cache_gb * GIB)
    plan = replace(plan, state_pages=state_pages(plan, room, one * page_bytes))
    room -= plan.state_bytes
    left -= plan.state_bytes
    if kv_cache_gb is None:
        share = room // page_bytes - 1
        pages = max(one, share if everything else min(share, one * plan.max_sequences))
    else:
        pages = room // page_bytes - 1
    kv_bytes = (pages + 1) * page_bytes
    if pages < one:
        most = max(pages, 0) * plan.page_size
        raise PlanError(
            f"engine.kv_cache_gb={kv_cache_gb:g} holds {most} tokens at "
            f"{size(plan.kv_bytes_per_token)} each, one sequence of model.max_len={plan.max_len} "
            f"takes {size((one + 1) * page_bytes + plan.state_bytes)}: raise engine.kv_cache_gb or "
            "lower model.max_len"
        )
    if kv_bytes > left:
        what = "KV cache" if kv_cache_gb is not None else "KV cache for one sequence"
        raise PlanError(
            f"{arithmetic(plan)} + {what} {size(kv_bytes)} = "
            f"{size(plan.fixed_bytes + plan.state_bytes + kv_bytes)}, "
            f"but {size(plan.available_bytes)} are available: {helpful_keys(plan)}"
        )
    return replace(plan, pages=pages, kv_bytes=kv_bytes)


def state_pages(plan: Plan, room: int, sequence_bytes: int) -> int:
    """Pages for what as many sequences attend to across as `room` has, their tokens beside them."""
    if plan.states is None:
        return 0
    each = plan.states.pages * plan.state_page_bytes
    sequences = (room - plan.state_page_bytes) // (sequence_bytes + each)
    return plan.states.pages * max(1, min(sequences, plan.max_sequences))


def state_page_bytes(states: StateSizes, dtype: str) -> int:
    """Keys and values of a page's states, in all layers that attend to them."""
    each = 2 * states.layers * states.kv_heads * states.head_dim * ITEMSIZE[dtype]
    return states.page * each


def arithmetic(plan: Plan) -> str:
    """The terms of everything but the KV cache as a sum."""
    terms = {
        "weights": plan.weights_bytes,
        "slack": plan.slack_bytes,
        "activations": plan.activation_bytes,
        plan.tower: plan.encoder_bytes,
        "encoder cache": plan.encoder_cache_bytes,
        "states": plan.state_bytes,
    }
    return " + ".join(f"{name} {size(count)}" for name, count in terms.items() if count)


def helpful_keys(plan: Plan) -> str:
    """What to change so that less memory is needed."""
    keys = ["model.max_len" if plan.options.kv_cache_gb is None else "engine.kv_cache_gb"]
    keys.append("engine.max_tokens_per_step")
    if plan.encoder_cache_bytes:
        keys += ["cache.encoder_gb", *(f"media.{kind}.limit" for kind in plan.modalities)]
    lower = f"lower {' or '.join([', '.join(keys[:-1]), keys[-1]])}"
    return f"{lower}, or take model.dtype=bfloat16" if plan.dtype == "float32" else lower


def activation_bytes(
    checkpoint: Checkpoint, itemsize: int, tokens: int, sequences: int, max_len: int
) -> int:
    """Most bytes alive in a step: one layer's tensors, one sequence's gathered KV and mask, logits.

    A layer holds residual, normed, output, q, k, v, gate, up and product for each token.
    Logits are float32 and exist three times while sampling (logits, filtered, probabilities), twice
    for prompt tokens whose log-probabilities are wanted.
    """
    attention = (checkpoint.heads + 2 * checkpoint.kv_heads) * checkpoint.head_dim
    layer = tokens * (4 * checkpoint.hidden + 2 * attention + 3 * checkpoint.intermediate)
    gathered = 2 * max_len * checkpoint.kv_heads * checkpoint.head_dim
    mask = min(tokens, max_len) * max_len * itemsize
    rows = 3 * min(sequences, tokens) + 2 * min(PROMPT_ROWS, tokens)
    logits = rows * checkpoint.vocabulary * 4
    return (layer + gathered) * itemsize + mask + logits


def resolve_dtype(
    requested: str,
    folder: str | Path,
    device: str,
    available_bytes: int | None = None,
    *,
    ours: bool = False,
) -> str:
    """Turn `auto` into a type: the checkpoint's, or float32 on a CPU that has to emulate it.

    On a card a float32 checkpoint becomes bfloat16: FlashInfer has no float32 kernels. On a CPU our
    library, if it is `ours` that computes, has bfloat16 whatever the processor has, and no float16.

    Float32 is taken when its weights would fit twice over; it prefills several times faster there.
    """
    if requested != "auto":
        return requested
    checkpoint = read_checkpoint(folder)
    if device != "cpu":
        return "bfloat16" if checkpoint.dtype == "float32" else checkpoint.dtype
    if checkpoint.dtype in DTYPES if ours else cpu_has_native(checkpoint.dtype):
        return checkpoint.dtype
    parameters = checkpoint.decoder_parameters + checkpoint.tower_parameters
    available = available_memory() if available_bytes is None else available_bytes
    return "float32" if 2 * parameters * ITEMSIZE["float32"] <= available else checkpoint.dtype


def size(count: int) -> str:
    """Bytes as a person reads them."""
    amount, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.0f} {units[0]}" if units[0] == "B" else f"{amount:.2f} {units[0]}"
