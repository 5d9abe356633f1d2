"""What Tab offers: flags, groups, keys, and the values that a key may take."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from omegaconf import DictConfig

from appliance.config.check import Key, groups, keys
from appliance.config.compose import compose_node, group_options, shown
from appliance.config.errors import ConfigurationError
from appliance.config.folders import user_folders
from appliance.config.recipes import recipe_files
from appliance.config.reference import plain_default
from appliance.config.schema import TASKS

Flags = Mapping[str, Sequence[str]]  # with what may follow each
INSTALL = tuple(
    f"{what}={shell}" for what in ("install", "uninstall") for shell in ("bash", "fish")
)


def offered(line: str, given: Sequence[str], flags: Flags) -> list[str]:
    """What may stand in place of the last word of a command line that is being typed.

    `flags` are the launcher's; `given` are folders of recipes that are known without looking at the
    line.
    """
    words = _words(line)[1:] or [""]
    last, before = words[-1], words[:-1]
    named = [b for a, b in pairwise(before) if a in ("--config-dir", "-cd")]
    try:
        folders = user_folders([*named, *given])
    except ConfigurationError:  # half a name
        folders = user_folders([])
    return [text for text in _candidates(last, before, folders, flags) if text.startswith(last)]


def _words(line: str) -> list[str]:
    """Words as a shell would cut them, the last one maybe open or empty."""
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()
    return [*words, ""] if not line or line[-1].isspace() else words


def _candidates(
    last: str, before: list[str], folders: Sequence[Path], flags: Flags
) -> Iterator[str]:
    previous = before[-1] if before else ""
    if previous in ("-sc", "--shell-completion"):
        yield from INSTALL
    elif flags.get(previous) or previous in ("-cd", "--config-dir"):
        yield from flags.get(previous, ())  # folders are the shell's to offer
    elif "help" in before[:1] or previous in ("--package", "-p"):
        yield from (name for name, _ in groups())
        if "help" in before[:1]:
            yield from (key.name for key in keys())
            yield from recipe_files(folders)
    elif last.startswith("-"):
        yield from (*flags, "-sc")
    elif "=" in last:
        yield from _values(last.partition("=")[0], before, folders)
    else:
        yield from _names(last, folders)
        if not before:
            yield "help"


def _names(last: str, folders: Sequence[Path]) -> Iterator[str]:
    """Groups and keys, down to the next dot."""
    stem = last.rpartition(".")[0]
    prefix = f"{stem}." if stem else ""
    yield from (f"{name}=" for name in sorted(group_options(folders)))
    told = set()
    for key in keys():
        rest = key.name.removeprefix(prefix)
        if not key.name.startswith(prefix) or key.name == "recipe":
            continue
        text = prefix + (f"{rest.partition('.')[0]}." if "." in rest else f"{rest}=")
        if text not in told:
            told.add(text)
            yield text


def _values(name: str, before: list[str], folders: Sequence[Path]) -> Iterator[str]:
    options = group_options(folders)
    if name in options:
        yield from (f"{name}={option}" for option in options[name])
        return
    key = next((key for key in keys() if key.name == name), None)
    if key is None:
        return
    yield from (f"{name}={value}" for value in _of_key(key, _composed(before, folders)))


def _of_key(key: Key, node: DictConfig) -> Iterator[str]:
    """The choices of a key, and what it has now where that can be typed as one word."""
    choices = TASKS if key.name == "task" else key.metadata.get("choices", ())
    listed = key.type.startswith("list")
    yield from (f"[{choice}]" if listed else choice for choice in choices)
    if "bool" in key.type:
        yield from ("true", "false")
    if key.type.endswith("null"):
        yield "null"
    value = plain_default(key.name, node).replace(", ", ",")
    if value not in ("", "must be set", "null", *choices) and not set(value) & set(" '\"$"):
        yield value


def _composed(before: list[str], folders: Sequence[Path]) -> DictConfig:
    chosen = [word for word in before if word.startswith("recipe=")]
    try:
        return shown(compose_node(chosen, folders), resolved=True)
    except ConfigurationError:
        return shown(compose_node([], []))
