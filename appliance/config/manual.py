"""What `--help` and `help NAME` print: a page, keys of a group, one key, or a recipe's notes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from appliance.config.check import NAME, Key, bounds, groups, keys
from appliance.config.compose import compose_node, group_options, shown
from appliance.config.errors import ConfigurationError, suggestion
from appliance.config.recipes import recipe_files
from appliance.config.reference import plain_default

WIDTH = 100
PAGE = """\
Serve a multimodal language model from one YAML file, behind an OpenAI-compatible endpoint.

  appliance                              list the recipes
  appliance recipe=NAME                  serve one
  appliance recipe=NAME server.port=9000 media.image.limit=2
                                         set any key
  appliance recipe=NAME task=plan        print what memory it takes, load nothing
  appliance recipe=NAME engine=cuda task=kernels
                                         compile what it runs on a card, ahead of time
  appliance help NAME                    explain a group, a key or a recipe

Flags
  --cfg job               print the composed recipe; --package GROUP a part, --resolve without ${{}}
  --config-dir FOLDER     use recipes of your own too: FOLDER/recipe/NAME.yaml
  --info searchpath       print where configuration is looked for
  --version, --help       the version; this page
  -sc install=bash        complete with Tab: eval "$(appliance -sc install=bash)"

Recipes
  {recipes}

Groups of keys
{groups}
"""


def page(folders: Sequence[Path]) -> str:
    """What there is, on one screen."""
    options = group_options(folders)
    width = max(len(name) for name, _ in groups())
    rows = []
    for name, meaning in groups():
        chosen = options.get(name)
        choice = f" ({name}={'|'.join(chosen)})" if chosen and len(chosen) > 1 else ""
        rows.append(f"  {name:<{width}}  {meaning}{choice}")
    recipes = textwrap.fill(", ".join(recipe_files(folders)), WIDTH - 2, subsequent_indent="  ")
    return PAGE.format(recipes=recipes, groups="\n".join(rows)).rstrip()


def explain(topics: Sequence[str], overrides: Sequence[str], folders: Sequence[Path]) -> str:
    """What each topic is, with the values that `overrides` give. Raises ConfigurationError."""
    node = shown(compose_node(overrides, folders), resolved=True)
    defaults = compose_node([], [])
    return "\n\n".join(_explained(topic, node, defaults, folders) for topic in topics)


def _explained(topic: str, node: DictConfig, defaults: DictConfig, folders: Sequence[Path]) -> str:
    name = topic.partition("=")[0].lstrip("+").rstrip(".")
    meanings = dict(groups())
    holder = next((one for one in meanings if name in (one, one.removesuffix(f".{NAME}"))), None)
    if holder is not None:
        inner = [key for key in keys() if key.name.rpartition(".")[0] == holder]
        below = [one for one in meanings if one.startswith(f"{holder}.")]
        more = [f"More: {', '.join(f'appliance help {one}' for one in below)}"] if below else []
        told = [_key(key, node, defaults) for key in inner]
        return "\n".join([f"{holder}: {meanings[holder]}\n", *told, *more])
    found = [key for key in keys() if key.name == name]
    found = found or [key for key in keys() if key.name.rpartition(".")[2] == name]
    if found:
        return "\n".join(_key(key, node, defaults) for key in found)
    recipes = recipe_files(folders)
    if name in recipes:
        return notes(recipes[name])
    known = [*meanings, *recipes, *(key.name for key in keys())]
    raise ConfigurationError(
        f"help: nothing is called '{topic}'{suggestion(name, known)}; "
        "there are groups, keys and recipes: appliance --help"
    )


def notes(recipe: Path) -> str:
    """What a recipe says of itself, above its first key."""
    lines = []
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join([*lines, f"({recipe})"]).strip()


def _key(key: Key, node: DictConfig, defaults: DictConfig) -> str:
    default, value = plain_default(key.name, defaults), plain_default(key.name, node)
    kind = ", ".join(part for part in (key.type, bounds(key.metadata)) if part)
    facts = [kind, f"default {default}" if default not in ("", "must be set") else default]
    if value != default and value != "must be set":
        facts.append(f"here {value}")
    text = f"{key.help}\n{'; '.join(fact for fact in facts if fact)}"
    wrapped = [textwrap.fill(line, WIDTH - 6) for line in text.splitlines()]
    return f"  {key.name}\n{textwrap.indent(chr(10).join(wrapped), ' ' * 6)}"
