"""Which family a checkpoint is of."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from engine.errors import ModelUnsupported
from engine.models.documents import CheckpointBroken, read_document
from engine.models.family import Family
from engine.models.settings import check_settings

FAMILIES = (
    "text:Text",
    "qwen2_vl:Qwen2VL",
    "llava:Llava",
    "gemma3:Gemma3",
    "ultravox:Ultravox",
    "bert:Bert",
    "bert:BertClassifier",
    "whisper:Whisper",
)  # module:class beside this file


def family_for(folder: str | Path) -> Family:
    """The family of the checkpoint in `folder`. Raises ModelUnsupported if there is none."""
    path = Path(folder) / "config.json"
    config = read_document(path)
    architectures = config.get("architectures") or ["(none named)"]
    if not isinstance(architectures, list):
        raise CheckpointBroken(f"{path}: architectures must be a list")
    check_settings(config, path)
    known: list[str] = []
    for entry in FAMILIES:
        module, name = entry.split(":")
        family: type[Family] = getattr(import_module(f"engine.models.{module}"), name)
        if architectures[0] in family.architectures:
            try:
                return family(folder)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise CheckpointBroken(
                    f"{folder}: its config.json or the settings of its processor have a value that "
                    f"{architectures[0]} cannot have"
                ) from error
        known += family.architectures
    raise ModelUnsupported(
        f"no family for architecture {str(architectures[0])[:100]}; supported: {', '.join(known)}"
    )
