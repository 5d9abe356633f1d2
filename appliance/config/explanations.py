"""What Hydra, OmegaConf, the YAML reader and the disk say is wrong, as one line of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from appliance.config.check import NAME, Key, groups, is_named, keys
from appliance.config.errors import suggestion
from appliance.config.masking import is_secret
from appliance.config.recipes import circle, recipe_files

QUOTING = re.compile(r"(alias|anchor|tag|handle) '[^']*'")  # of YAML errors, what was written


def explain(error: Exception, options: dict[str, list[str]]) -> str:
    """Turn an error of Hydra, OmegaConf or the YAML reader into one line of ours."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        known = options.get(group, [])
        return f"no configuration '{error.missing_cfg_file}'{suggestion(name, known)}"
    chain = list(causes(error))
    where = next(
        (f"{match[1]}: " for one in chain if (match := re.match(r"In '(.+?)':", str(one)))), ""
    )
    for one in reversed(chain):
        if isinstance(one, yaml.MarkedYAMLError) and one.problem_mark is not None:
            mark = one.problem_mark
            problem = QUOTING.sub(r"\1", str(one.problem))
            return f"{mark.name}, line {mark.line + 1}: not valid YAML ({problem})"
        if isinstance(one, OmegaConfBaseException) and one.full_key:
            return where + explain_key(one)
    reason = " ".join(str(chain[-1]).split())
    if "with ListConfig" in reason:
        return f"{where}a recipe holds keys and values, not a list"
    if named := re.search(r"is not a subclass of (\w+)Config", reason):
        reason = f"{named[1].lower()} is a group of keys and cannot be a value itself"
    return where + reason


def explain_circle(overrides: Sequence[Override], folders: Sequence[Path]) -> str:
    """Say which recipes inherit from each other."""
    files = recipe_files(folders)
    chosen = next((one.value() for one in overrides if one.key_or_group == "recipe"), None)
    names = circle(chosen, files) if isinstance(chosen, str) else []
    if not names:
        return "an option of a group inherits from itself, or too many from each other"
    hint = " (one of your own that replaces a built-in one cannot inherit from it)"
    return f"{files[names[0]]} inherits from itself: {' > '.join(names)}{hint}"


def explain_file(error: OSError | UnicodeError, folders: Sequence[Path]) -> str:
    """Say which file cannot be read."""
    if isinstance(error, OSError):
        return f"'{error.filename}' cannot be read ({(error.strerror or 'refused').lower()})"
    for root in folders:
        for file in sorted(root.glob("*/*.yaml")):
            try:
                file.read_text(encoding="utf-8")
            except UnicodeError:
                return f"'{file}' is not text in UTF-8"
            except OSError:
                continue
    return "a file of the configuration is not text in UTF-8"


def explain_key(error: OmegaConfBaseException) -> str:
    name = str(error.full_key)
    known = {key.name: key for key in keys()}
    reason = " ".join(str(error.msg or error).split())
    stem = name.partition("[")[0]
    if is_secret(stem):
        return explain_secret(stem, reason, known)
    if name == "recipe":
        return "a recipe has to begin with the line '# @package _global_'"
    if name in known:
        if known[name].type.startswith("list") and "is not a ListConfig" in reason:
            return f"{name} must be {known[name].type}: a list stands in brackets, even of one"
        wrong = "null" if "not Optional" in reason else reason.split(" full_key:")[0]
        return f"{name} must be {known[name].type}: {wrong}"
    if name not in {group for group, _ in groups()} and re.search(
        "not in|not a valid|struct", reason
    ):
        return f"unknown key '{name}'{suggestion(name, known)}"
    return f"{name}: {reason.split(' full_key:')[0]}"


def explain_secret(name: str, reason: str, known: Mapping[str, Key]) -> str:
    """Say what is wrong with a key that is, or may be meant as, a secret: values are not quoted."""
    if unset := re.search(r"Environment variable '(\w+)' not found", reason):
        return f"{name}: environment variable '{unset[1]}' is not set"
    if not is_named(name) and name not in {*known, *(group for group, _ in groups())}:
        return f"unknown key '{name}'{suggestion(name, known)}"
    key = known.get(name) or known.get(re.sub(r"(?<=tenants\.)[^.]+", NAME, name))
    if key is None:
        return f"{name}: a group of that name begins in a recipe; its keys can then be set here"
    return f"{name} must be {key.type}"


def causes(error: BaseException | None) -> Any:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
