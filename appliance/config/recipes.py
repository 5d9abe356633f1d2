"""The recipes that can be chosen, with the line that says what each one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from appliance.config.folders import data_folder


def recipe_files(folders: Sequence[Path]) -> dict[str, Path]:
    """Return name to file of every recipe; the first folder wins, built-in recipes come last."""
    found: dict[str, Path] = {}
    for folder in [*folders, data_folder("recipes")]:
        for file in sorted((folder / "recipe").glob("*.yaml")):
            if file.is_file():
                found.setdefault(file.stem, file)
    return dict(sorted(found.items()))


def misnamed(name: str, folders: Sequence[Path]) -> Path | None:
    """The file of a recipe that nobody finds by its name."""
    files = [folder / "recipe" / f"{name}.yml" for folder in folders]
    return next((file for file in files if file.is_file()), None)


def circle(name: str, files: Mapping[str, Path]) -> list[str]:
    """The recipes that a recipe inherits from down to one that comes twice, or nothing."""
    way = [name]
    while name in files:
        tree = yaml.safe_load(files[name].read_text(encoding="utf-8"))
        entries = tree.get("defaults", []) if isinstance(tree, dict) else []
        above = [one for one in entries if isinstance(one, str) and one in files]
        again = next((one for one in above if one in way), None)
        if again is not None:
            return [*way[way.index(again) :], again]
        if not above:
            break
        name = above[0]
        way.append(name)
    return []


def headline(file: Path) -> str:
    """Return the first comment line of a recipe that is not Hydra's `# @package` header."""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
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
