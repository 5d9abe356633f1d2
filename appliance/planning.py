"""The plan of a composed recipe: what `task=plan` prints is what `task=serve` enforces."""

from __future__ import annotations

import os
from pathlib import Path

from appliance.config.schema import Config, EngineConfig, MediaConfig
from appliance.kernels import kernel_options
from engine.errors import ModelUnsupported
from engine.memory.plan import GIB, Plan, PlanError, plan, resolve_dtype
from engine.memory.quantization import device_unsupported
from engine.models.registry import family_for
from engine.native.choice import chosen, computes, left_to_torch
from engine.options import SPECULATION_TOKENS, EngineOptions

GPU_SHARE = 0.9  # of the card, where engine.gpu_memory_fraction does not say
KV_DTYPES = {"auto": None, "fp8": "float8_e4m3fn"}


def allowed_modalities(media: MediaConfig) -> tuple[str, ...]:
    """Modalities that requests may bring, by the limits of the recipe."""
    limits = {
        "image": media.image.limit,
        "video": media.video.limit,
        "audio": media.audio.limit,
    }
    return tuple(modality for modality, limit in limits.items() if limit > 0)


def engine_options(config: Config, folder: Path) -> EngineOptions:
    """The engine's settings as configured; what the plan finds is still open.

    Raises PlanError for keys that contradict each other.
    """
    engine, ranks = config.engine, config.parallelism.tensor
    check_device_keys(engine)
    reason = device_unsupported(config.model.quantization, engine.device)
    if reason is not None:
        raise PlanError(reason)
    if ranks > 1 and not engine.fuse:
        raise PlanError(f"parallelism.tensor={ranks} splits fused layers: set engine.fuse=true")
    check_prefill_graphs(engine, ranks)
    check_tower_graphs(engine)
    native = engine.native
    if native == "auto" and family_for(folder).encoder_only:
        native = "torch"  # there are no kernels of ours for such layers
    options = EngineOptions(
        model_path=str(folder),
        dtype=resolve_dtype(
            config.model.dtype,
            folder,
            engine.device,
            ours=computes(native, fuse=engine.fuse, ranks=ranks),
        ),
        device=engine.device,
        threads=engine.threads or max(1, len(os.sched_getaffinity(0)) // ranks),
        page_size=engine.page_size,
        pages=0,
        max_len=config.model.max_len or 0,
        max_tokens_per_step=engine.max_tokens_per_step,
        max_sequences=engine.max_sequences,
        prefix_cache=config.cache.prefix,
        encoder_cache_bytes=int(config.cache.encoder_gb * GIB),
        modalities=allowed_modalities(config.media),
        kv_cache_gb=engine.kv_cache_gb,
        quantization=config.model.quantization,
        fuse=engine.fuse,
        native=native,
        kv_dtype=KV_DTYPES[engine.kv_dtype],
        graphs=engine.graphs,
        prefill_graphs=engine.prefill_graphs,
        tower_graphs=engine.tower_graphs,
        memory_fraction=engine.gpu_memory_fraction or GPU_SHARE,
        measured=engine.device == "cuda" and engine.kv_cache_gb is None,
        prefill_attention=engine.prefill_attention,
        decode_products=engine.decode_products,
        vision_attention=engine.vision_attention,
        vision_attention_from=engine.vision_attention_from,
        kernels=kernel_options(config) if engine.device == "cuda" else None,
        prefill_seconds=None if engine.prefill_ms is None else engine.prefill_ms / 1e3,
        step_seconds=engine.step_seconds,
        speculation=engine.speculation,
        speculation_tokens=engine.speculation_tokens or SPECULATION_TOKENS,
        tensor_parallel=ranks,
    )
    reason = left_to_torch(options)
    if engine.native not in ("auto", "torch") and reason is not None:
        raise PlanError(f"engine.native={engine.native}: {reason}: set it to auto")
    return options


def plan_recipe(config: Config, folder: Path, available_bytes: int | None = None) -> Plan:
    """Plan the checkpoint in `folder` as configured; see `plan` for `available_bytes`.

    Raises ModelUnsupported for a checkpoint that the recipe is not written for, PlanError when it
    cannot fit, has no tower for a modality that the recipe allows, asks a
    CPU for what only a card does, or cannot be split as `parallelism` says; DeviceMissing when
    there is no card.
    """
    check_architecture(config, folder)
    check_embeddings(config, folder)
    return plan(engine_options(config, folder), available_bytes)


def check_architecture(config: Config, folder: Path) -> None:
    """Raise ModelUnsupported where the recipe is for another model: its template would be wrong."""
    meant = config.model.architectures
    found = family_for(folder).config["architectures"][0]
    if meant and found not in meant:
        who = f"recipe={config.recipe}" if config.recipe else "model.architectures"
        raise ModelUnsupported(
            f"{who} is for {' or '.join(meant)}, and '{config.model.path}' is "
            f"{found}: choose a recipe of its own, or model.path without one"
        )


def check_embeddings(config: Config, folder: Path) -> None:
    """Raise PlanError for a model that makes vectors or scores alone, and none are to be served.

    So it does for scores of a model that makes none, and for vectors cut to more than they have.
    """
    family, asked = family_for(folder), config.embeddings
    architecture = family.config["architectures"][0]
    if asked.rerank and not family.classifies:
        raise PlanError(f"{architecture} scores no texts: set embeddings.rerank=false")
    if family.classifies and (asked.serve or not asked.rerank):
        raise PlanError(
            f"{architecture} scores texts and does nothing else: set embeddings.rerank=true and "
            "embeddings.serve=false"
        )
    if family.encoder_only and not (asked.serve or asked.rerank):
        raise PlanError(
            f"{architecture} makes vectors and generates nothing: set embeddings.serve=true"
        )
    width = family.text_config().get("hidden_size", 0)
    longest = max(asked.dimensions or [0])
    if asked.serve and longest > width:
        raise PlanError(
            f"embeddings.dimensions has {longest}, and vectors of this model have {width} numbers"
        )


def switched_off(config: Config, folder: Path) -> tuple[str, ...]:
    """Modalities that the checkpoint has and the configuration allows none of."""
    allowed = allowed_modalities(config.media)
    return tuple(one for one in family_for(folder).available if one not in allowed)


def how_to_switch_on(modalities: tuple[str, ...]) -> str:
    """Which keys allow what a checkpoint could take."""
    plurals = " and ".join(one if one == "audio" else f"{one}s" for one in modalities)
    keys = " ".join(f"media.{one}.limit=1" for one in modalities)
    return f"the model takes {plurals} too, which the configuration has off: {keys} turns them on"


def check_device_keys(engine: EngineConfig) -> None:
    """Raise PlanError for a key that asks a CPU for what only a card does, or the other way round.

    So it does for a card that has been given what a CPU gets: what a step takes, how many sequences
    run, no graphs. NativeUnusable is raised for kernels by name that this CPU does not run.
    """
    if engine.speculation is None and engine.speculation_tokens is not None:
        raise PlanError(
            f"engine.speculation_tokens={engine.speculation_tokens} is of engine.speculation: set "
            "that to ngram, or this to null"
        )
    if engine.device == "cuda":
        if engine.gpu_memory_fraction is None and not engine.graphs:
            raise PlanError(
                "engine.device=cuda alone keeps the settings for a CPU, without graphs and with "
                "small steps: say engine=cuda, which sets them all"
            )
        if engine.native != "auto":
            raise PlanError(f"engine.native={engine.native} is for engine=cpu")
        if engine.speculation is not None:
            raise PlanError(
                f"engine.speculation={engine.speculation} is for engine=cpu: a card computes the "
                "next step before the tokens of the last one are known; set it to null"
            )
        return
    if engine.native != "auto":
        chosen(engine.native)
    asked = {
        "kv_dtype=fp8": engine.kv_dtype == "fp8",
        "graphs=true": engine.graphs,
        "gpu_memory_fraction": engine.gpu_memory_fraction is not None,
        "decode_products=own": engine.decode_products == "own",
        "prefill_attention=fa3": engine.prefill_attention == "fa3",
        f"prefill_graphs={engine.prefill_graphs}": engine.prefill_graphs > 0,
        "tower_graphs=true": engine.tower_graphs,
        f"vision_attention={engine.vision_attention}": engine.vision_attention != "sdpa",
    }
    for name, wanted in asked.items():
        if wanted:
            raise PlanError(f"engine.{name} needs engine=cuda")


def check_prefill_graphs(engine: EngineConfig, ranks: int) -> None:
    """Raise PlanError where short batches cannot be recorded in pieces, or none would be so short.

    Decoding is recorded with them; pieces are of fused layers, whole ones.
    """
    if not engine.prefill_graphs:
        return
    asked = f"engine.prefill_graphs={engine.prefill_graphs}"
    if not engine.graphs:
        raise PlanError(f"{asked} records what a step computes: set engine.graphs=true")
    if not engine.fuse:
        raise PlanError(f"{asked} records fused layers: set engine.fuse=true")
    if ranks > 1:
        raise PlanError(
            f"{asked} is for a single card, and parallelism.tensor={ranks}: set "
            "engine.prefill_graphs=0"
        )
    if engine.prefill_graphs > engine.max_tokens_per_step:
        raise PlanError(
            f"{asked} is more than a step has: set it to engine.max_tokens_per_step="
            f"{engine.max_tokens_per_step} or less"
        )


def check_tower_graphs(engine: EngineConfig) -> None:
    """Raise PlanError where towers cannot be recorded, whichever the model has."""
    if not engine.tower_graphs:
        return
    if not engine.graphs:
        raise PlanError("engine.tower_graphs=true records what is computed: set engine.graphs=true")
    if engine.vision_attention != "sdpa":
        raise PlanError(
            "engine.tower_graphs=true records towers that attend by torch: set "
            "engine.vision_attention=sdpa"
        )
