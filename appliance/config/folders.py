"""Where configuration is found: data of the checkout or wheel, and the user's folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from appliance.config.errors import ConfigurationError

PACKAGE = Path(__file__).resolve().parent.parent
PRIMARY = "appliance"
BESIDE = re.compile(r"recipe://(?!.*\.\.(?:/|$))([\w.-]+(?:/[\w.-]+)*)")

_active: ContextVar[tuple[Path, ...]] = ContextVar("folders of recipes in use")


def data_folder(name: str) -> Path:
    """Return built-in data (`conf`, `recipes`): in the installed package, or atop a checkout."""
    shipped = PACKAGE / "_data" / name
    return shipped if shipped.is_dir() else PACKAGE.parent / name


def user_folders(given: Sequence[str]) -> list[Path]:
    """Return the folders of `--config-dir`, then of `APPLIANCE_RECIPES`; the first wins."""
    from_environment = os.environ.get("APPLIANCE_RECIPES", "").split(os.pathsep)
    folders = []
    for text in [*given, *(part for part in from_environment if part)]:
        folder = Path(text).expanduser().resolve()
        if not folder.is_dir():
            raise ConfigurationError(f"no folder '{text}' (from --config-dir or APPLIANCE_RECIPES)")
        if (folder / f"{PRIMARY}.yaml").exists():
            raise ConfigurationError(
                f"'{text}' holds a file {PRIMARY}.yaml, which would replace the built-in defaults; "
                f"recipes belong in '{Path(text) / 'recipe'}'"
            )
        check_shape(text, folder)
        folders.append(folder)
    for text, folder in zip(given, folders, strict=False):
        if not any(inner.is_dir() for inner in folder.iterdir()):
            raise ConfigurationError(f"--config-dir '{text}' holds no recipe/NAME.yaml")
    return folders


def check_shape(text: str, folder: Path) -> None:
    """Raise ConfigurationError for a folder one level too deep, or of almost the right shape."""
    if (folder / "recipe").is_dir():
        return
    recipes = sorted(folder.glob("*.yaml"))
    if folder.name == "recipe" and recipes:
        above = Path(text).parent if Path(text).name == "recipe" else folder.parent
        raise ConfigurationError(
            f"'{text}' is the folder of recipes itself: give the one above it, '{above}'"
        )
    if recipes:
        raise ConfigurationError(
            f"'{text}' holds {recipes[0].name} itself: recipes belong in '{Path(text) / 'recipe'}'"
        )
    if any((folder / "recipes").glob("*.yaml")):
        raise ConfigurationError(f"'{text}' holds 'recipes': the folder has to be called 'recipe'")


def beside_recipes(path: str, folders: Sequence[Path]) -> str:
    """Return `recipe://name` as the path of what lies beside the recipes, the user's first.

    What follows a `#` is kept; any other path stays as it is.
    """
    if not path.startswith("recipe://"):
        return path
    source, mark, rest = path.partition("#")
    match = BESIDE.fullmatch(source)
    if match is None:
        raise ConfigurationError(f"model.path: '{source}' is not recipe://folder/beside/recipes")
    candidates = [root / match[1] for root in [*folders, data_folder("recipes")]]
    for candidate in candidates:
        if candidate.exists():
            return f"{candidate}{mark}{rest}"
    looked = ", ".join(f"'{candidate}'" for candidate in candidates)
    raise ConfigurationError(f"model.path: '{path}' is not there; looked for {looked}")


class FolderSearchPath(SearchPathPlugin):
    """Puts the user's folders before everything built in, and the built-in recipes last."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in reversed(_active.get(())):
            search_path.prepend(provider="user", path=f"file://{folder}")
        search_path.append(provider="recipes", path=f"file://{data_folder('recipes')}")


@contextmanager
def searching(folders: Sequence[Path]) -> Iterator[None]:
    """Let Hydra search `folders` as well while the context lasts."""
    Plugins.instance().register(FolderSearchPath)
    token = _active.set(tuple(folders))
    try:
        yield
    finally:
        _active.reset(token)
