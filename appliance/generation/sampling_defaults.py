"""What sampling fields are worth that a request leaves out."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from appliance.config.schema import SamplingConfig
from engine.models.documents import CheckpointBroken, optional_document

MOST = 1 << 31


@dataclass(slots=True, frozen=True)
class SamplingDefaults:
    """OpenAI's own defaults, and off for the fields that OpenAI does not have."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def sampling_defaults(config: SamplingConfig, folder: Path) -> SamplingDefaults:
    """The recipe's values; where it has none those of the checkpoint's generation_config.json.

    Raises CheckpointBroken for one that is no number.
    """
    path = folder / "generation_config.json"
    declared = optional_document(path)
    if not declared.get("do_sample"):
        declared = {}  # transformers ignores them too
    values = {}
    for field in fields(SamplingDefaults):
        value = getattr(config, field.name)
        value = declared.get(field.name) if value is None else value
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MOST:
                raise CheckpointBroken(f"{path}: {field.name} must be a number")
            values[field.name] = type(field.default)(value)  # type: ignore[misc]
    return replace(SamplingDefaults(), **values)
