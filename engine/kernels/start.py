"""All kernels of an engine, before it takes its first request."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from engine.device.toolchain import missing_tools
from engine.kernels.compiler import compile_modules
from engine.kernels.module import KernelModule
from engine.kernels.needed import required
from engine.kernels.stock import KernelsMissing, Stock, look
from engine.kernels.times import in_words, seconds
from engine.models.registry import family_for
from engine.options import EngineOptions, KernelOptions

Progress = Callable[[str, float], None]

NO_JIT = "FLASHINFER_DISABLE_JIT"  # an error for a kernel that is missing, and no compiling
OWNER = "model-appliance"
logger = logging.getLogger(__name__)


def provide(options: EngineOptions, capability: tuple[int, int], progress: Progress) -> Stock:
    """The stock, with all that these options need on such a card.

    What is missing is compiled, together. Raises KernelsUnfit for kernels of another machine, and
    KernelsMissing, naming one, where nothing may or can be compiled.
    """
    kernels = options.kernels
    assert kernels is not None
    progress("looking for kernels", 0.0)
    stock = look(kernels, capability)
    missing = stock.missing(required(family_for(options.model_path), options, [capability]))
    if not missing:
        return stock
    reason = why_not(kernels)
    if reason is not None:
        raise stock.refusal(missing, reason)
    took = in_words(seconds(missing, options.threads))
    logger.info("compiling %d kernels, which takes about %s", len(missing), took)

    def report(done: int, total: int, fraction: float) -> None:
        progress(f"compiling kernels {done} of {total}", fraction)

    compile_modules(missing, stock.target, options.threads, report)
    return look(kernels, capability)


def why_not(options: KernelOptions) -> str | None:
    """Why nothing is compiled; None where something can be."""
    if not options.jit:
        return "engine.jit=false"
    missing = missing_tools(compiling=True)
    return missing or (f"{NO_JIT} is set" if os.environ.get(NO_JIT) else None)


def hand_over(stock: Stock) -> None:
    """Have FlashInfer load what the stock's folder has, as it would another package's kernels."""
    from flashinfer.jit import env

    target = stock.target
    provider = env.AOTProvider(
        provider_id=OWNER,
        distribution=OWNER,
        version=env.flashinfer_version,
        jit_cache_dir=target.folder,
        cuda_architectures=frozenset(
            f"sm{architecture.replace('.', '')}" for architecture in target.architectures
        ),
        modules=stock.compiled,
    )
    others = (one for one in env.FLASHINFER_AOT_PROVIDERS if one.provider_id != OWNER)
    env.FLASHINFER_AOT_PROVIDERS = (*others, provider)


def absent(module: KernelModule, there: frozenset[str] | None) -> str | None:
    """Why a kernel that can be done without is not taken; None if it is to be loaded.

    `there` are the names of those that are compiled; None if nobody looked: then FlashInfer
    compiles what is missing, unless its environment forbids it.
    """
    if there is not None:
        return None if module.name in there else f"{module.name} is not compiled"
    from flashinfer.jit import env

    if not os.environ.get(NO_JIT) or env.get_aot_artifacts(module.name):
        return None
    return f"{module.name} is not compiled, and {NO_JIT} is set"


def compile_no_more() -> None:
    """From now on a kernel that is missing is an error, and not minutes under a request."""
    os.environ[NO_JIT] = "1"


def as_missing(error: Any, options: EngineOptions) -> KernelsMissing | None:
    """What FlashInfer's error of a kernel that may not be compiled means here; None for others."""
    if type(error).__name__ != "MissingJITCacheError" or options.kernels is None:
        return None
    name = getattr(getattr(error, "spec", None), "name", "of unknown name")
    return KernelsMissing(
        f"FlashInfer asks for the kernel {name}, which is not on the list for this model and "
        "nothing may be compiled: leave out engine.jit=false, with what compiles kernels there"
    )
