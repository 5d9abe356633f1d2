"""The plan of a composed recipe: what `task=plan` prints is what `task=serve` enforces."""

from __future__ import annotations

from pathlib import Path

from appliance.config.schema import Config, MediaConfig
from engine.plan import GIB, Plan, plan, resolve_dtype


def allowed_modalities(media: MediaConfig) -> tuple[str, ...]:
    """Modalities that requests may bring, by the limits of the recipe."""
    return ("image",) if media.image.limit > 0 else ()


def plan_recipe(config: Config, folder: Path) -> Plan:
    """Plan the checkpoint in `folder` as configured.

    Raises PlanError when it cannot fit, or has no tower for a modality that the recipe allows.
    """
    return plan(
        folder,
        dtype=resolve_dtype(config.model.dtype, folder, config.engine.device),
        device=config.engine.device,
        page_size=config.engine.page_size,
        max_len=config.model.max_len,
        max_tokens_per_step=config.engine.max_tokens_per_step,
        max_sequences=config.engine.max_sequences,
        kv_cache_gb=config.engine.kv_cache_gb,
        encoder_cache_bytes=int(config.cache.encoder_gb * GIB),
        modalities=allowed_modalities(config.media),
    )
