"""Compiled kernels as a recipe wants them: where they are, and what a start must have."""

from __future__ import annotations

import os
from pathlib import Path

from appliance.config.schema import Config
from engine.device.toolchain import missing_tools
from engine.kernels.architecture import parsed
from engine.kernels.folder import KernelFolder
from engine.kernels.needed import required
from engine.kernels.start import NO_JIT, why_not
from engine.kernels.stock import capabilities, look
from engine.memory.plan import PlanError
from engine.models.registry import family_for
from engine.options import EngineOptions, KernelOptions

SHARED = "kernels"  # in the cache's folder


def kernel_options(config: Config) -> KernelOptions:
    """Raises ArchitectureUnknown for a `kernels.arch` that is none."""
    folder = config.kernels.folder
    shared = Path(config.cache.folder).expanduser() / SHARED
    return KernelOptions(
        folder=str(Path(folder).expanduser().resolve() if folder else shared.resolve()),
        named=folder is not None,
        command=command(config),
        architectures=() if config.kernels.arch is None else parsed(config.kernels.arch),
        jit=config.engine.jit,
    )


def command(config: Config) -> str:
    """What somebody types to have the kernels of this recipe compiled."""
    engine = config.engine
    source = f"model.path={config.model.path}"
    words = ["appliance", f"recipe={config.recipe}" if config.recipe else source, "engine=cuda"]
    settings = {
        "model.dtype": (config.model.dtype, "auto"),
        "engine.kv_dtype": (engine.kv_dtype, "auto"),
        "engine.fuse": (str(engine.fuse).lower(), "true"),
        "engine.prefill_attention": (engine.prefill_attention, "auto"),
        "engine.decode_products": (engine.decode_products, "library"),
        "engine.vision_attention": (engine.vision_attention, "sdpa"),
    }
    words += [f"{name}={value}" for name, (value, usual) in settings.items() if value != usual]
    words.append("task=kernels")
    if config.kernels.folder:
        words.append(f"kernels.folder={config.kernels.folder}")
    if config.kernels.arch:
        words.append(f"'kernels.arch=\"{config.kernels.arch}\"'")
    return " ".join(words)


def settle_kernels(config: Config) -> None:
    """Find out what can be told of compiled kernels without a card, and tell FlashInfer.

    Raises KernelsUnfit for a folder that is of other packages than this machine's, and for a
    `kernels.arch` that is none. Where nothing can be compiled, or nothing may be, this process and
    those that it starts are set to compile nothing: no compiler is then asked for.
    """
    if config.engine.device != "cuda":
        if config.kernels.arch is not None:
            raise PlanError("kernels.arch needs engine=cuda: a CPU has nothing to compile")
        return
    options = kernel_options(config)
    compiled = bool(options.named and look(options, None).compiled) or _cached(options)
    if not options.jit or (compiled and missing_tools(compiling=True) is not None):
        os.environ[NO_JIT] = "1"  # the engine's process inherits it


def check_compiled(options: EngineOptions, folder: Path) -> None:
    """Raise KernelsMissing before anything is loaded, where a kernel is missing for good.

    Only a named folder says what it is for without a card being asked.
    """
    kernels = options.kernels
    if kernels is None or not (kernels.named or kernels.architectures):
        return
    reason = why_not(kernels)
    if reason is None:
        return
    stock = look(kernels, None)
    missing = stock.missing(
        required(family_for(folder), options, capabilities(stock.target.architectures))
    )
    if missing:
        raise stock.refusal(missing, reason)


def _cached(options: KernelOptions) -> bool:
    """Whether there are kernels that an earlier start has kept, of whatever kind."""
    if options.named:
        return False
    folders = (file.parent for file in Path(options.folder).glob("*/*.json"))
    return any(KernelFolder(folder).manifest() for folder in folders)
