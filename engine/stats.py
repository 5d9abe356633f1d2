"""Figures that the engine gives about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class EngineStats:
    """What the engine is doing, and what it has done since it started."""

    running: int = 0
    waiting: int = 0
    pages_total: int = 0
    pages_used: int = 0
    pages_cached: int = 0
    prefix_hit_tokens: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    encoder_cache_bytes: int = 0
    encoder_cache_hits: int = 0
    encoder_cache_misses: int = 0
    steps: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
