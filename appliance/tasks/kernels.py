"""`task=kernels`: compile what a recipe runs on a card, ahead of time and on any machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from appliance import progress
from appliance.config.compose import Composed
from appliance.config.errors import ConfigurationError
from appliance.config.schema import Config
from appliance.kernels import kernel_options
from appliance.lifecycle import Lifecycle
from appliance.loading import in_daemon
from appliance.log_lines import configure
from appliance.planning import check_architecture, check_device_keys, engine_options
from appliance.tasks.plan import leaving
from appliance.weights.source import outlined
from engine.attention.limits import unsupported
from engine.device.cards import card
from engine.device.toolchain import missing_tools
from engine.errors import EngineError
from engine.kernels.architecture import named
from engine.kernels.compiler import Target, compile_modules, compiled
from engine.kernels.folder import KernelFolder
from engine.kernels.module import KernelModule
from engine.kernels.needed import needed
from engine.kernels.stock import capabilities, folder_for
from engine.kernels.times import in_words, seconds
from engine.kernels.versions import installed
from engine.memory.checkpoint import read_checkpoint
from engine.memory.plan import PlanError, size
from engine.models.registry import family_for
from engine.options import EngineOptions


def run(composed: Composed) -> int:
    """Compile, and print where the kernels are. Raises ConfigurationError, in one line."""
    config = composed.config
    configure(config.logging)
    try:
        if config.engine.device != "cuda":
            raise PlanError("task=kernels needs engine=cuda: a CPU has nothing to compile")
        check_device_keys(config.engine)
        with leaving(), outlined(config.model, config.cache) as folder:
            check_architecture(config, folder)
            options = engine_options(config, folder)
            target, modules = wanted(config, options, folder)
        made = asyncio.run(compile_shown(modules, target, options.threads))
    except EngineError as error:
        raise ConfigurationError(str(error)) from error
    print(f"{config.model.name}: {made}")
    return 0


def wanted(
    config: Config, options: EngineOptions, folder: Path
) -> tuple[Target, tuple[KernelModule, ...]]:
    """What the recipe needs, and where it goes.

    A folder with kernels of the same kind keeps them: several recipes can share one. Raises
    EngineError where the model has no kernels, or nothing is there to compile with.
    """
    family = family_for(folder)
    reason = unsupported(options.dtype, read_checkpoint(folder, family).head_dim)
    if reason is not None:
        raise PlanError(reason)
    tools = missing_tools(compiling=True)
    if tools is not None:
        raise PlanError(tools)
    kernels = kernel_options(config)
    architectures = kernels.architectures or (named(card().capability),)
    there = installed()
    if not there.flashinfer:
        raise PlanError("FlashInfer is not installed: `pip install flashinfer-python`")
    place = folder_for(kernels, architectures, there)
    before = place.manifest()
    if before is not None and before.runs(architectures, there):
        architectures = before.architectures
    modules = needed(family, options, capabilities(architectures))
    return Target(place.path, architectures), modules


async def compile_shown(modules: Sequence[KernelModule], target: Target, threads: int) -> str:
    """Compile what is missing, with a bar; returns what was done, in words."""
    there, folder = compiled(target), KernelFolder(target.folder)
    missing = [module for module in modules if module.name not in there]
    begun = time.monotonic()
    if missing:
        await compile_missing(missing, target, threads)
    taken = sum(folder.library(module.name).stat().st_size for module in modules)
    what = f"all {len(modules)} kernels are in {target.folder} ({size(taken)})"
    took = f", {len(missing)} of them compiled in {time.monotonic() - begun:.0f} s"
    return what + (took if missing else "")


async def compile_missing(missing: Sequence[KernelModule], target: Target, threads: int) -> None:
    lifecycle = Lifecycle(phase=f"compiling, about {in_words(seconds(missing, threads))}")
    lifecycle.detail = f"0 of {len(missing)} kernels"

    def report(done: int, total: int, fraction: float) -> None:
        lifecycle.fraction, lifecycle.detail = fraction, f"{done} of {total} kernels"

    shown = asyncio.create_task(progress.show(lifecycle))
    try:
        await in_daemon(compile_modules, missing, target, threads, report)
    finally:
        lifecycle.loaded = True
        await asyncio.gather(shown, return_exceptions=True)
