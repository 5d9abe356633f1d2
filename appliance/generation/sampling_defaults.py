"""What sampling fields are worth that a request leaves out."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

from appliance.config.schema import SamplingConfig


@dataclass(slots=True, frozen=True)
class SamplingDefaults:
    """OpenAI's own defaults, and off for the fields that OpenAI does not have."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def sampling_defaults(config: SamplingConfig, folder: Path) -> SamplingDefaults:
    """The recipe's values; where it has none those of the checkpoint's generation_config.json."""
    path = folder / "generation_config.json"
    declared = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not declared.get("do_sample"):
        declared = {}  # transformers ignores them too
    values = {}
    for field in fields(SamplingDefaults):
        value = getattr(config, field.name)
        value = declared.get(field.name) if value is None else value
        if value is not None:
            values[field.name] = type(field.default)(value)  # type: ignore[misc]
    return replace(SamplingDefaults(), **values)
