"""The recipes that can be chosen, with the line that says what each one is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from appliance.config.folders import data_folder


def recipe_files(folders: Sequence[Path]) -> dict[str, Path]:
    """Return name to file of every recipe; the first folder wins, built-in recipes come last."""
    found: dict[str, Path] = {}
    for folder in [*folders, data_folder("recipes")]:
        for file in sorted((folder / "recipe").glob("*.yaml")):
            found.setdefault(file.stem, file)
    return dict(sorted(found.items()))


def headline(file: Path) -> str:
    """Return the first comment line of a recipe that is not Hydra's `# @package` header."""
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("#") and not text.startswith("# @package"):
            return text.lstrip("# ")
        if text and not text.startswith("#"):
            break
    return ""


def listing(folders: Sequence[Path]) -> str:
    """Return one line per recipe, built-in and the user's."""
    files = recipe_files(folders)
    width = max(map(len, files), default=0)
    lines = [f"  {name:<{width}}  {headline(file)}" for name, file in files.items()]
    return "\n".join(["Recipes (serve one with: appliance recipe=NAME)", *lines])
