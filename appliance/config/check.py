"""Checks that types alone cannot express: ranges, choices, lengths, and names that do not exist."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from appliance.config.errors import ConfigurationError, suggestion
from appliance.config.schema import Config

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:]+\]|[a-z0-9._-]+)(:\d+)?/?", re.IGNORECASE)
ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
ROUTE = re.compile(r"/[^\s*?#]*\*?")
NAME = "NAME"  # stands for any name that the user gives a group of keys


@dataclass(slots=True, frozen=True)
class Key:
    """One configuration key as declared in the schema."""

    name: str  # dotted
    type: str  # as a reader would say it: int, list of str, str or null
    metadata: Mapping[str, Any]

    @property
    def help(self) -> str:
        return str(self.metadata["help"])


def spell(annotation: Any) -> str:
    """Return a type in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(spell(argument) for argument in arguments)
    if origin is list:
        return f"list of {spell(arguments[0])}"
    return "null" if annotation is type(None) else str(annotation.__name__)


@cache
def type_hints(cls: type) -> dict[str, Any]:
    """The types of a class's fields; they are looked up for every key that is checked."""
    return typing.get_type_hints(cls)


def keys(cls: type = Config, prefix: str = "") -> Iterator[Key]:
    """Yield every key of the schema in the order it is declared."""
    hints = type_hints(cls)
    for field in dataclasses.fields(cls):
        annotation = hints[field.name]
        if dataclasses.is_dataclass(annotation):
            yield from keys(typing.cast(type, annotation), f"{prefix}{field.name}.")
        elif named := field.metadata.get("of"):
            yield from keys(named, f"{prefix}{field.name}.{NAME}.")
        else:
            yield Key(prefix + field.name, spell(annotation), field.metadata)


def groups(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted name and description of every group of keys."""
    hints = type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield prefix + field.name, str(field.metadata["help"])
            yield from groups(hints[field.name], f"{prefix}{field.name}.")
        elif "of" in field.metadata:
            yield f"{prefix}{field.name}.{NAME}", str(field.metadata["help"])


def bounds(metadata: Mapping[str, Any]) -> str:
    """Return the values a key may take in words, or nothing when its type says it all."""
    low, high, above = metadata.get("low"), metadata.get("high"), metadata.get("above")
    parts = []
    if "choices" in metadata:
        parts.append("one of " + ", ".join(metadata["choices"]))
    if low is not None and high is not None:
        parts.append(f"from {low} to {high}")
    elif low is not None:
        parts.append(f"at least {low}")
    elif above is not None:
        parts.append(f"more than {above}")
    if "length" in metadata:
        parts.append(f"exactly {metadata['length']} values")
    return ", ".join(parts)


def within(value: Any, metadata: Mapping[str, Any]) -> bool:
    """Whether one value (not a list) lies inside the bounds of its key."""
    if "choices" in metadata:
        return bool(value in metadata["choices"])
    if not isinstance(value, (int, float)):
        return True
    low, high = metadata.get("low", -math.inf), metadata.get("high", math.inf)
    return bool(low <= value <= high and value > metadata.get("above", -math.inf))


def check_values(config: Config) -> None:
    """Raise ConfigurationError for the first value outside what the schema allows."""
    for key in keys():
        for name, value in settings(config, key.name):
            check_value(name, value, key.metadata)
    check_origins(config.server.cors_origins)
    check_root_path(config.server.root_path)
    check_routes("server.limits.routes", config.server.limits.routes)
    for name, tenant in config.server.tenants.items():
        check_routes(f"server.tenants.{name}.routes", tenant.routes)


def check_origins(origins: Sequence[str]) -> None:
    """Raise ConfigurationError for an origin that no browser would ever send."""
    for origin in origins:
        if origin not in ("*", "null") and not ORIGIN.fullmatch(origin):
            raise ConfigurationError(
                f"server.cors_origins: '{origin}' is no origin, such as https://example.org or "
                'http://localhost:3000, without a path; "*" is any'
            )


def check_root_path(path: str | None) -> None:
    """Raise ConfigurationError for what is no prefix of a path."""
    if path is not None and not ROOT_PATH.fullmatch(path):
        raise ConfigurationError(
            f"server.root_path is '{path}', must be a path such as /models/one, without a slash at "
            "its end"
        )


def check_routes(name: str, routes: Sequence[str] | None) -> None:
    """Raise ConfigurationError for what is no path of a route."""
    for route in routes or ():
        if not ROUTE.fullmatch(route):
            raise ConfigurationError(f"{name}: '{route}' is no route, such as /v1/models or /v1/*")


def settings(config: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield what is set for a key: one value, or one of each named group that has it."""
    first, _, rest = name.partition(".")
    members = config if first == NAME else {first: getattr(config, first)}
    for member, value in members.items():
        if not rest:
            yield member, value
        else:
            for inner, found in settings(value, rest):
                yield f"{member}.{inner}", found


def check_value(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for a value outside what its key allows."""
    if value is None:
        return
    values = value if isinstance(value, list) else [value]
    if "" in values:
        otherwise = "an empty list" if isinstance(value, list) else "null, where that is allowed,"
        raise ConfigurationError(f"{name} is empty: give a text, or {otherwise} for none")
    if any(isinstance(one, float) and not math.isfinite(one) for one in values):
        raise ConfigurationError(f"{name} is {value}, must be a finite number")
    wrong = next((one for one in values if not within(one, metadata)), None)
    if wrong is None and len(values) == metadata.get("length", len(values)):
        return
    shown = value if wrong is None else wrong
    hint = suggestion(str(shown), metadata.get("choices", ()))
    raise ConfigurationError(f"{name} is {shown!r}, must be {bounds(metadata)}{hint}")


def check_key(name: str, full: str | None = None) -> None:
    """Raise ConfigurationError for a dotted key that the schema does not have.

    `full` is what to type instead, where that is known.
    """
    known = {key.name: key for key in keys()} | {group: None for group, _ in groups()}
    stem, _, last = name.rpartition(".")
    if name in known or (last.isdecimal() and stem in known):
        return
    if is_named(name):
        return
    what = f", type {full}" if full else suggestion(name, known)
    raise ConfigurationError(f"unknown key '{name}'{what}")


def is_named(name: str) -> bool:
    """Whether a dotted name is a group that the user names, or a key of one."""
    steps = name.split(".")
    patterns = [*(key.name for key in keys()), *(group for group, _ in groups())]
    return any(
        NAME in pattern and matches(pattern, steps) for pattern in (p.split(".") for p in patterns)
    )


def matches(pattern: list[str], steps: list[str]) -> bool:
    """Whether dotted steps are a pattern, in which NAME stands for anything."""
    return len(pattern) == len(steps) and all(
        expected in (NAME, step) for expected, step in zip(pattern, steps, strict=True)
    )
