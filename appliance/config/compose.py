"""From a command line to a checked configuration, or to one line that says what is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from appliance.config.api_keys import check_server_keys
from appliance.config.check import (
    bounds,
    check_key,
    check_values,
    is_named,
    keys,
)
from appliance.config.errors import ConfigurationError, suggestion
from appliance.config.explanations import explain, explain_circle, explain_file
from appliance.config.folders import PRIMARY, beside_recipes, data_folder, searching, user_folders
from appliance.config.masking import (
    masked_arguments,
    masked_overrides,
    masked_tree,
    secret_variables,
)
from appliance.config.recipes import misnamed, recipe_files
from appliance.config.schema import Config
from appliance.config.texts import (
    check_decoded_texts,
    check_file_texts,
    check_override_texts,
    composed_files,
)
from appliance.config.words import in_full

VERSION_BASE = "1.3"
NOT_IN_DIGEST = (
    "recipe",
    "task",
    "server.api_keys",
    "server.api_keys_file",
    "server.tenants",
)  # same model and behaviour whatever these are; keys are secret


@dataclass(slots=True, frozen=True)
class Composed:
    """A checked configuration, what identifies it, and the YAML that reproduces it as a recipe."""

    config: Config
    digest: str
    yaml: str
    exposed: tuple[str, ...] = ()  # keys whose secrets stood in the overrides
    secret_variables: tuple[str, ...] = ()  # of the environment, that keys refer to


def register_schema() -> None:
    """Put the dataclasses under the YAML, as the config `schema` of the primary defaults list."""
    ConfigStore.instance().store(name="schema", node=Config)


def compose(argv: Sequence[str], config_dirs: Sequence[str] = ()) -> Composed:
    """Compose `key=value` and `group=option` overrides; raises ConfigurationError with one line."""
    folders = user_folders(config_dirs)
    node = compose_node(argv, folders)
    config = to_config(node)
    config.cache.folder = str(Path(config.cache.folder).expanduser())
    templates = []
    for group, name in ((config.chat, "chat"), (config.embeddings, "embeddings")):
        template = find_template(group.template, folders, f"{name}.template")
        group.template = str(template) if template else None
        templates += [template] if template else []
    config.model.path = beside_recipes(config.model.path, folders)
    if config.model.name is None:
        config.model.name = config.recipe or Path(config.model.path.partition("#")[0]).name
    shown = zip(argv, masked_arguments(argv), strict=True)
    exposed = tuple(text.partition("=")[0].lstrip("+") for text, told in shown if told != text)
    yaml = as_recipe(node)
    variables = secret_variables(OmegaConf.to_container(node), resolve(node))
    return Composed(config, digest(node, templates), yaml, exposed, variables)


def compose_node(argv: Sequence[str], folders: Sequence[Path]) -> DictConfig:
    """Compose without requiring mandatory values, and check everything that is set."""
    overrides = parse(argv)
    options = group_options(folders)
    for override, shown in zip(overrides, masked_arguments(argv), strict=True):
        check_override(override, options, shown, folders)
        check_override_texts(override)
    register_schema()
    with (
        searching(folders),
        initialize_config_dir(
            str(data_folder("conf")), version_base=VERSION_BASE, job_name=PRIMARY
        ),
    ):
        try:
            check_files(argv, folders)
            node = hydra_compose(PRIMARY, overrides=list(argv), return_hydra_config=True)
            choice = node.hydra.runtime.choices.get("recipe")
            with open_dict(node):
                del node["hydra"]
            node.recipe = choice
            check_decoded_texts(node)
            resolved = resolve(node)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            raise ConfigurationError(explain(error, options)) from error
        except RecursionError as error:
            raise ConfigurationError(explain_circle(overrides, folders)) from error
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(explain_file(error, folders)) from error
    check_server_keys(resolved["server"])
    return node


def check_files(argv: Sequence[str], folders: Sequence[Path]) -> None:
    """Look at the YAML that will be composed, while what was written in it can still be told."""
    loader = GlobalHydra.instance().config_loader()
    listed = loader.compute_defaults_list(PRIMARY, list(argv), RunMode.RUN)
    roots = [*folders, data_folder("conf"), data_folder("recipes")]
    for file, package in composed_files(listed.defaults, roots):
        check_file_texts(file, package)


def resolve(node: DictConfig) -> dict[str, Any]:
    """Return plain values, interpolations followed."""
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))


def to_config(node: DictConfig) -> Config:
    """Turn a composed node into dataclasses; raises ConfigurationError when one is missing."""
    try:
        config = cast(Config, OmegaConf.to_object(node))
    except MissingMandatoryValue as error:
        name = str(error.full_key)
        hint = "; choose a recipe=NAME or give a folder or hub id" if name == "model.path" else ""
        raise ConfigurationError(f"{name} is not set{hint}") from error
    except OmegaConfBaseException as error:
        raise ConfigurationError(explain(error, {})) from error
    check_values(config)
    return config


def parse(argv: Sequence[str]) -> list[Override]:
    """Parse overrides by Hydra's grammar, naming the first one that does not parse."""
    try:
        return OverridesParser.create().parse_overrides(list(argv))
    except OverrideParseException as error:
        place = list(argv).index(error.override) if error.override in argv else None
        shown = "an override" if place is None else f"'{masked_arguments(argv)[place]}'"
        raise ConfigurationError(
            f"cannot read {shown}: overrides are key=value or group=option, "
            "and a value with = , : or brackets is quoted twice: 'key=\"value\"'"
        ) from error


def group_options(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Return the options of every group that has YAML files, the user's included."""
    options = {"recipe": list(recipe_files(folders))}
    for root in [*folders, data_folder("conf")]:
        for file in sorted(root.glob("*/*.yaml")):
            if file.parent.name != "recipe" and file.is_file():
                names = options.setdefault(file.parent.name, [])
                names.extend([file.stem] if file.stem not in names else [])
    return options


def check_override(
    override: Override, options: dict[str, list[str]], text: str, folders: Sequence[Path]
) -> None:
    """Raise ConfigurationError for a key or option that does not exist; `text` is shown of it."""
    name = override.key_or_group
    if name == "hydra" or name.startswith(("hydra.", "hydra/")):
        raise ConfigurationError(f"'{text}': Hydra's own settings are fixed here")
    written = str(override.input_line or "").partition("=")[2]
    if override.is_sweep_override():
        if (full := in_full(name, written)) and "[" in full:
            raise ConfigurationError(f"'{text}': a list stands in brackets, type {full}")
        raise ConfigurationError(f"'{text}': one value only, an appliance serves one model")
    if override.is_delete():
        raise ConfigurationError(
            f"'{text}': keys cannot be deleted; set {name}=null or another value"
        )
    if name not in options:
        check_key(name, in_full(name, written))
        if override.is_add() and not is_named(name):
            raise ConfigurationError(
                f"'{text}': {name} is a key already, type {in_full(name, written)} without a +"
            )
        check_list(name, override.value(), in_full(name, written))
        if override.is_add():
            raise ConfigurationError(
                f"{name}: a group of that name begins in a recipe; its keys can then be set here"
            )
        return
    value = override.value()
    if not isinstance(value, str):
        keys_of = f"; its keys can be set one by one ({name}.KEY=VALUE)" if name != "recipe" else ""
        raise ConfigurationError(f"'{text}': {name} takes the name of one option{keys_of}")
    if value not in options[name]:
        if name == "recipe" and (file := misnamed(value, folders)):
            raise ConfigurationError(f"'{file}' has to be called {value}.yaml")
        known = ", ".join(options[name])
        raise ConfigurationError(
            f"unknown {name} '{value}'{suggestion(value, options[name])}; there are: {known}"
        )


def check_list(name: str, value: Any, full: str | None) -> None:
    """Raise ConfigurationError for one value where a key takes a list."""
    known = {key.name: key for key in keys()}
    single = not isinstance(value, list | dict) and value is not None
    if name in known and known[name].type.startswith("list") and single and "${" not in str(value):
        key = known[name]
        if key.type == "list of int" and not isinstance(value, int):
            raise ConfigurationError(f"{name} must be {key.type}, {bounds(key.metadata)}")
        raise ConfigurationError(f"{name} takes a list, type {full}")


def find_template(
    name: str | None, folders: Sequence[Path], key: str = "chat.template"
) -> Path | None:
    """Return the file a key names: one of a `templates/` folder (the user's first), or a path."""
    if name is None:
        return None
    shelves = [folder / "templates" for folder in [*folders, data_folder("recipes")]]
    for candidate in [*(shelf / name for shelf in shelves), Path(name).expanduser()]:
        if candidate.is_file():
            return candidate.resolve()
    known = [file.name for shelf in shelves for file in sorted(shelf.glob("*.jinja"))]
    raise ConfigurationError(f"{key}: no file '{name}'{suggestion(name, known)}")


def digest(node: DictConfig, templates: Sequence[Path]) -> str:
    """Return 12 hex digits of SHA-256 over the resolved values and the templates' texts."""
    content = OmegaConf.create(OmegaConf.to_container(node, resolve=True))
    for name in NOT_IN_DIGEST:
        OmegaConf.update(content, name, None)
    text = OmegaConf.to_yaml(content, sort_keys=True)
    for template in templates:
        text += template.read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def as_recipe(node: DictConfig, resolved: bool = False) -> str:
    """Return YAML that is itself a recipe: saved under `recipe/`, it composes to the same.

    Plain keys are printed as their digests.
    """
    name = node.recipe or "no recipe"
    return (
        f"# @package _global_\n# Composed from {name}.\n{OmegaConf.to_yaml(shown(node, resolved))}"
    )


def as_package(node: DictConfig, package: str, resolved: bool = False) -> str:
    """Return the YAML of a part of a recipe, as Hydra prints it."""
    part = OmegaConf.select(shown(node, resolved), package)
    if part is None:
        raise ConfigurationError(f"--package: there is nothing under '{package}'")
    text = OmegaConf.to_yaml(part) if OmegaConf.is_config(part) else f"{part}\n"
    return f"# @package {package}\n{text}"


def shown(node: DictConfig, resolved: bool = False) -> DictConfig:
    """Return what may be printed of a composed node."""
    tree = OmegaConf.to_container(node, resolve=resolved)
    return OmegaConf.create(masked_tree(tree, resolve(node)))


def hydras_overrides(node: DictConfig, argv: Sequence[str], resolved: bool) -> list[str]:
    """Return overrides with which Hydra composes, and prints, no secrets."""
    tree = OmegaConf.to_container(node, resolve=resolved)
    return masked_overrides(argv, tree, masked_tree(tree, resolve(node)))
