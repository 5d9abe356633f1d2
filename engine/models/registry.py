"""Which family a checkpoint is of."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from engine.errors import ModelUnsupported
from engine.models.family import Family

FAMILIES = (
    "text:Text",
    "qwen2_vl:Qwen2VL",
    "llava:Llava",
    "gemma3:Gemma3",
    "ultravox:Ultravox",
)  # module:class beside this file


def family_for(folder: str | Path) -> Family:
    """The family of the checkpoint in `folder`. Raises ModelUnsupported if there is none."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnsupported(f"{path} is missing or not JSON") from error
    architectures = config.get("architectures") or ["(none named)"]
    known: list[str] = []
    for entry in FAMILIES:
        module, name = entry.split(":")
        family: type[Family] = getattr(import_module(f"engine.models.{module}"), name)
        if architectures[0] in family.architectures:
            return family(folder)
        known += family.architectures
    raise ModelUnsupported(
        f"no family for architecture {architectures[0]}; supported: {', '.join(known)}"
    )
