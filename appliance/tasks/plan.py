"""`task=plan`: what the model needs and what fits, from file headers alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from appliance.config.compose import Composed
from appliance.config.errors import ConfigurationError
from appliance.config.schema import Config
from appliance.kernels import settle_kernels
from appliance.planning import (
    GPU_SHARE,
    check_device_keys,
    how_to_switch_on,
    plan_recipe,
    switched_off,
)
from appliance.weights.source import outlined
from engine.device.cards import Card, card
from engine.errors import EngineError
from engine.kernels.needed import needed, required
from engine.kernels.start import why_not
from engine.kernels.stock import look
from engine.kernels.times import in_words, seconds
from engine.memory.card_memory import usable_bytes
from engine.memory.checkpoint import ITEMSIZE
from engine.memory.plan import Plan, size
from engine.models.registry import family_for
from engine.native.choice import in_words as native_in_words


def run(composed: Composed) -> int:
    """Print the plan. Raises ConfigurationError, with the arithmetic, for what cannot fit."""
    config = composed.config
    try:
        check_device_keys(config.engine)
        settle_kernels(config)
        with leaving(), outlined(config.model, config.cache) as folder:
            there = card() if config.engine.device == "cuda" else None
            plan = plan_recipe(config, folder, None if there is None else usable(config, there))
            off = switched_off(config, folder)
            by_whom = native_in_words(plan.options, across=plan.states is not None)
            kernels = f"  Layers: {by_whom}."
            if there is not None:
                kernels = kernels_in_words(plan, folder, there.capability)
    except EngineError as error:
        raise ConfigurationError(str(error)) from error
    print(f"{config.model.name}  ({plan.architecture}, {plan.dtype}, recipe {composed.digest})\n")
    if plan.ranks > 1:
        print(f"  Rank 0 of {plan.ranks}; the others take less, since it alone has the towers.\n")
    print(table(plan))
    print(f"\n{kernels}")
    if config.recipe is None and off:
        print(f"\n  NB: {how_to_switch_on(off)}.")
    return 0


@contextmanager
def leaving() -> Iterator[None]:
    """Have a signal end the process by way of what is to be tidied up."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def usable(config: Config, there: Card) -> int:
    """What of the card's memory may be planned with."""
    fraction = config.engine.gpu_memory_fraction or GPU_SHARE
    return usable_bytes(there.total_bytes, there.free_bytes, fraction)


def kernels_in_words(plan: Plan, folder: Path, capability: tuple[int, int]) -> str:
    """Which compiled kernels a start will find, and about how long it takes to compile the rest.

    Raises KernelsUnfit for a folder of another machine's.
    """
    options = plan.options
    assert options.kernels is not None
    stock = look(options.kernels, capability)
    family, place = family_for(folder), stock.target.folder
    modules = needed(family, options, [capability])
    missing = stock.missing(required(family, options, [capability]))
    spared = [module for module in stock.missing(modules) if module not in missing]
    there = len(modules) - len(missing) - len(spared)
    command, threads = options.kernels.command, options.threads
    if there == len(modules):
        return f"  Kernels: all {there} are compiled ({place})."
    said = [f"  Kernels: {there} of {len(modules)} are compiled ({place})."]
    reason = why_not(options.kernels)
    if missing and reason is not None:
        said.append(f"  A start refuses ({reason}) for want of")
    elif missing:
        took = in_words(seconds(missing, threads))
        said.append(f"  The first start, or `{command}`, takes about {took} for")
    said += [f"    {module.name}" for module in missing]
    if spared:
        took = in_words(seconds(spared, threads))
        said.append(f"  A start is slower without, but does not wait for; `{command}`: {took}")
    return "\n".join([*said, *(f"    {module.name}" for module in spared)])


def table(plan: Plan) -> str:
    """Return the arithmetic of a plan and how many sequences of which length fit."""
    terms = [
        ("weights", plan.weights_bytes, weight_terms(plan)),
        ("slack", plan.slack_bytes, "process, allocator, prepacked copies"),
        ("activations", plan.activation_bytes, "one step at its largest"),
        (plan.tower, plan.encoder_bytes, "media of one step at their largest"),
        ("encoder cache", plan.encoder_cache_bytes, "cache.encoder_gb"),
        ("KV cache", plan.kv_bytes, kv_terms(plan)),
        ("states", plan.state_bytes, state_terms(plan)),
    ]
    lines = [f"  {name:<14}{size(count):>12}  {why}" for name, count, why in terms if count]
    lines.append(f"  {'together':<14}{size(plan.total_bytes):>12}")
    lines.append(f"  {'available':<14}{size(plan.available_bytes):>12}\n")
    if not plan.kv_bytes:
        lines.append("  A prompt is computed as a whole and nothing of it is kept: no KV cache.")
        return "\n".join([*lines, f"  At most {plan.max_sequences} run at once."])
    lines.append(f"  The KV cache holds {plan.tokens:,} tokens. At once there is room for")
    lines += [
        f"  {plan.concurrency(length):>9,} sequences of {length:>7,} tokens"
        for length in lengths(plan)
    ]
    return "\n".join([*lines, f"  and never more than engine.max_sequences={plan.max_sequences}."])


def weight_terms(plan: Plan) -> str:
    parameters, itemsize = f"{plan.rank_parameters:,} parameters", ITEMSIZE[plan.dtype]
    if plan.fewer_bits is None:
        return f"{parameters} x {itemsize} bytes"
    those = plan.fewer_bits if plan.options.quantization is None else f"those of {plan.fewer_bits}"
    return f"{parameters}, {those}, others x {itemsize} bytes"


def kv_terms(plan: Plan) -> str:
    return f"{plan.pages:,} + 1 pages x {plan.page_size} tokens x {plan.kv_bytes_per_token:,} bytes"


def state_terms(plan: Plan) -> str:
    if plan.states is None:
        return ""
    each = plan.state_page_bytes // plan.states.page
    return f"{plan.state_pages:,} + 1 pages x {plan.states.page:,} states x {each:,} bytes"


def lengths(plan: Plan) -> list[int]:
    """Return 512, doubled for as long as it is below the longest sequence, and that one."""
    doubled = []
    length = 512
    while length < plan.max_len:
        doubled.append(length)
        length *= 2
    return [*doubled, plan.max_len]
