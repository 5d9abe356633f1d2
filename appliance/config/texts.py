"""Text that YAML, or the grammar of overrides, takes for something else.

`0042` is 34 in YAML 1.1 and `12e4567` is infinity: written where a key takes text, both would
become other texts. So such a value has to stand in quotes, wherever it is given, and the same text
means the same in a recipe and on a command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.override_parser.types import Override, QuotedString
from omegaconf import DictConfig, OmegaConf

from appliance.config.check import NAME, Key, bounds, groups, keys, matches
from appliance.config.errors import ConfigurationError
from appliance.config.masking import is_secret

FLOAT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?")  # as OmegaConf reads them
OCTAL = re.compile(r"[-+]?0[0-7_]+")
KINDS = {"int": "a number", "float": "a number", "bool": "a truth value", "timestamp": "a date"}
QUOTED = "write it in quotes"
NAMED = frozenset(name.removesuffix(f".{NAME}") for name, _ in groups() if name.endswith(NAME))
TAG = "tag:yaml.org,2002:"


def check_override_texts(override: Override) -> None:
    """Raise ConfigurationError where an override gives a text key something else than text."""
    raw = cast(Any, override._value)  # value() no longer tells what stood in quotes
    for name, value in _leaves(override.key_or_group, raw):
        if (kind := _kind_of(value)) and (key := text_key(name)):
            shown = "" if is_secret(name) else _written(override, value)
            raise _refused(key, name, shown, kind, f"'{name}=\"{shown}\"'" if shown else "")


def check_file_texts(file: Path, package: str) -> None:
    """The same of a YAML file whose keys begin under `package`; numbers in octal are refused too.

    Raises ConfigurationError; says nothing of files that are no YAML, which composing will.
    """
    try:
        tree = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return
    for name, node in _scalars(tree, package, set()):
        key = text_key(name)
        kind = _kind(node)
        octal = key is None and node.style is None and OCTAL.fullmatch(node.value)
        if not kind and not octal:
            continue
        place = f"{file}, line {node.start_mark.line + 1}: "
        if name in NAMED:
            raise ConfigurationError(f"{place}a name in {name} is read as {kind}: {QUOTED}")
        if key is not None:
            shown = "" if is_secret(name) else node.value
            quoted = f'"{shown}"' if shown else ""
            raise _refused(key, name, shown, kind, quoted, place)
        if octal:
            raise ConfigurationError(
                f"{place}{name}: a number that begins with 0 is read as octal, here as "
                f"{_integer(node)}: write the number that you mean without zeros before it"
            )


def check_decoded_texts(node: DictConfig) -> None:
    """The same of what `oc.decode` reads out of an environment variable."""
    plain = OmegaConf.to_container(node, resolve=False)
    untyped = OmegaConf.create(cast(dict[str, Any], plain))
    for name, written in _leaves("", plain):
        if isinstance(written, str) and "oc.decode" in written:
            for inner, value in _leaves(name, _selected(untyped, name)):
                kind = _kind_of(value) if not isinstance(value, str) else ""
                if kind and (key := text_key(inner)):
                    raise _refused(key, inner, "", kind, "")


def text_key(name: str) -> Key | None:
    """The key of that dotted name, if it takes text or a list of texts."""
    steps = re.sub(r"(\.\d+|\[.*)$", "", name).split(".")
    return next((key for key in _text_keys() if matches(key.name.split("."), steps)), None)


@cache
def _text_keys() -> tuple[Key, ...]:
    return tuple(key for key in keys() if "str" in key.type.split())


def _refused(
    key: Key, name: str, shown: str, kind: str, quoted: str, place: str = ""
) -> ConfigurationError:
    what = f"{shown} is read as {kind}" if shown else f"one value is read as {kind}"
    if "choices" in key.metadata:
        return ConfigurationError(f"{place}{name}: {what}, must be {bounds(key.metadata)}")
    how = f"{QUOTED}{f', {quoted}' if quoted else ''}"
    return ConfigurationError(f"{place}{name} takes text and {what}: {how}")


def _written(override: Override, value: Any) -> str:
    """How a value was written, where that can be told."""
    if override.value() == value or value != value:
        return str(override.input_line).partition("=")[2].strip()
    return str(value)


def _kind_of(value: Any) -> str:
    """What a parsed value is taken for, or nothing for text."""
    if isinstance(value, bool):
        return KINDS["bool"]
    if isinstance(value, int | float):
        return KINDS["float"]
    if isinstance(value, str):
        tag = yaml.SafeLoader("").resolve(yaml.ScalarNode, value, (True, False))
        return _kind(yaml.ScalarNode(tag, value))
    return ""


def _kind(node: yaml.ScalarNode) -> str:
    """What YAML takes a scalar for, or nothing for text and null."""
    found = KINDS.get(str(node.tag).removeprefix(TAG), "")
    if not found and node.style is None and FLOAT.fullmatch(node.value):
        return KINDS["float"]
    return found


def _integer(node: yaml.ScalarNode) -> int:
    return int(node.value.replace("_", ""), 8)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            text = key.text if isinstance(key, QuotedString) else str(key)
            yield from _leaves(f"{name}.{text}" if name else text, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(name, inner)
    else:
        yield name, value


def _scalars(
    node: yaml.Node | None, name: str, above: set[int]
) -> Iterator[tuple[str, yaml.ScalarNode]]:
    """Every scalar with the dotted name that it is the value of, merged mappings followed.

    What is a name itself comes with that of its mapping.
    """
    if isinstance(node, yaml.ScalarNode):
        yield name, node
    elif isinstance(node, yaml.CollectionNode) and id(node) not in above:  # anchors may go round
        above = above | {id(node)}
        for entry in node.value:
            if isinstance(node, yaml.SequenceNode):
                yield from _scalars(entry, name, above)
                continue
            key, value = entry
            if str(key.tag) == f"{TAG}merge":
                yield from _scalars(value, name, above)
            elif isinstance(key, yaml.ScalarNode):
                yield name, key
                yield from _scalars(value, f"{name}.{key.value}" if name else key.value, above)


def _selected(tree: Any, name: str) -> Any:
    found = OmegaConf.select(tree, name)
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found


def composed_files(defaults: Sequence[Any], roots: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """The file and the package of every entry of a list of defaults, those of `roots` alone."""
    for entry in defaults:
        path, package = entry.config_path, entry.package
        if path is None or path.startswith("hydra/"):
            continue
        for root in roots:
            if (file := root / f"{path}.yaml").is_file():
                yield file, package or ""
                break
