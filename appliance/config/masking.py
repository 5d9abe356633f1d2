"""What may be shown of command lines and recipes that hold secrets.

A key that is given plain is told as its digest, or as `***`; the user of a URL as `***`. A value
counts as secret where its key is one of `SECRETS`, and where an unknown key resembles one of them.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from appliance.config.api_keys import DIGEST, as_digest
from appliance.config.check import groups, keys, matches
from appliance.config.schema import Config
from appliance.secrecy import HIDDEN, SHORTEST

SECRETS = ("server.api_keys", "server.tenants.NAME.keys")
HOLDERS = ("server", "server.tenants", "server.tenants.NAME")  # groups that hold secrets
RESEMBLING = re.compile(r"api_?key|token|secret|passw|credential|authori|bearer|tenant")
REFERENCE = re.compile(r"\$\{oc\.env:\w+\}|\$\{oc\.decode:\$\{oc\.env:\w+\}\}")
USERINFO = re.compile(r"(?<=//)[^/\s]*@")


def without_userinfo(text: str) -> str:
    """A text in whose URLs nobody's name or password stands."""
    return USERINFO.sub(f"{HIDDEN}@", text)


def is_secret(name: str) -> bool:
    """Whether the value of a dotted key is, or holds, or was meant to be a secret."""
    steps = re.sub(r"\.\d+$|\[.*", "", name.lstrip("+~-")).split(".")
    if _one_of((*SECRETS, *HOLDERS), steps):
        return True
    if _one_of([*(key.name for key in keys()), *(name for name, _ in groups())], steps):
        return False
    return any(_resembles(step.lower().replace("-", "_")) for step in steps)


def masked_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command line without plain keys, those that a shell cut up included."""
    shown = []
    depth, expected = 0, False  # of brackets that are open; whether a value is still to come
    for text in arguments:
        name, sign, value = text.partition("=")
        if (depth > 0 or expected) and not _begins_override(name, sign):
            shown.append(HIDDEN)
            depth, expected = depth + _opened(text), False
            continue
        option = name.lstrip("+") == "server" and "{" not in value  # server=container
        secret = not option and is_secret(name) and (bool(sign) or name.startswith("--"))
        plain = secret and _holds_plain(value)
        shown.append(f"{name}={HIDDEN}" if plain else without_userinfo(text))
        depth, expected = _opened(value) if secret else 0, secret and not value
    return shown


def redacted(message: str, arguments: Sequence[str]) -> str:
    """A message without what `masked_arguments` hides: a net under those who build messages."""
    for text, shown in zip(arguments, masked_arguments(arguments), strict=True):
        if shown == text:
            continue
        message = message.replace(text, shown)
        for piece in re.split(r"[\[\]{}(),:='\"\s]+", text if shown == HIDDEN else _value(text)):
            if len(piece) >= SHORTEST:
                message = message.replace(piece, HIDDEN)
    return without_userinfo(message)


def masked_tree(shown: Any, resolved: Any, name: str = "") -> Any:
    """A composed recipe as it may be printed; `resolved` is the same without interpolations.

    What is printed lets the same keys in: plain ones are told as digests, and references to the
    environment stay.
    """
    steps = name.split(".")
    if isinstance(shown, str) and isinstance(resolved, dict) and _one_of(HOLDERS, steps):
        shown = resolved
    if isinstance(shown, dict):
        return {
            key: masked_tree(value, resolved[key], f"{name}.{key}" if name else str(key))
            for key, value in shown.items()
        }
    if _one_of(SECRETS, steps) and isinstance(resolved, list):
        if isinstance(shown, str):
            return shown if REFERENCE.fullmatch(shown) else [as_digest(one) for one in resolved]
        return [
            text if REFERENCE.fullmatch(text) else as_digest(entry)
            for text, entry in zip(shown, resolved, strict=True)
        ]
    if isinstance(shown, list) and isinstance(resolved, list):
        pairs = zip(shown, resolved, strict=True)
        return [masked_tree(one, meant, f"{name}.0") for one, meant in pairs]
    return without_userinfo(shown) if isinstance(shown, str) else shown


def masked_overrides(arguments: Sequence[str], tree: Any, masked: Any) -> list[str]:
    """Overrides that compose to `masked` instead of `tree`, for those who print what they compose.

    Overrides that hold secrets are replaced, and what a recipe's file holds is overridden.
    """
    told, replaced = [], []
    for text, shown in zip(arguments, masked_arguments(arguments), strict=True):
        name = text.partition("=")[0]
        if shown != text:
            replaced.append(name.lstrip("+"))
            text = f"{name}={_hydra(_select(masked, replaced[-1]))}"
        told.append(text)
    for name, value in _changed(tree, masked):
        if not any(f"{name}.".startswith(f"{holder}.") for holder in replaced):
            told.append(f"{name}={_hydra(value)}")
    return told


def secret_variables(tree: Any, resolved: Any) -> tuple[str, ...]:
    """Environment variables that keys refer to, or whose value is a key."""
    texts, values = _keys_of(tree), set(_keys_of(resolved))
    named = {name for text in texts for name in re.findall(r"oc\.env:\s*(\w+)", text)}
    return tuple(sorted(named | {name for name, value in os.environ.items() if value in values}))


def _keys_of(tree: Any) -> list[str]:
    server = tree["server"]
    tenants = server["tenants"]
    lists = [server["api_keys"]]
    if isinstance(tenants, dict):
        lists += [one["keys"] if isinstance(one, dict) else one for one in tenants.values()]
    else:
        lists.append(tenants)
    return [str(one) for some in lists for one in (some if isinstance(some, list) else [some])]


def _one_of(patterns: Iterable[str], steps: list[str]) -> bool:
    return any(matches(pattern.split("."), steps) for pattern in patterns)


def _resembles(step: str) -> bool:
    near = difflib.get_close_matches(step, ("api_keys", "keys", "key", "tenants"), 1, 0.75)
    return bool(near) or RESEMBLING.search(step) is not None


def _begins_override(name: str, sign: str) -> bool:
    """Whether an argument stands for itself, though one before it was cut off."""
    tops = {field.name for field in fields(Config)}
    first = re.split(r"[.@]", name.lstrip("+~"))[0]
    return name.startswith("--") or (bool(sign) and first in tops)


def _holds_plain(value: str) -> bool:
    rest = DIGEST.sub("", REFERENCE.sub("", value))
    return rest.strip() != "null" and re.search(r"[^\[\]{},'\"\s\\]", rest) is not None


def _opened(text: str) -> int:
    return sum(text.count(one) for one in "[{") - sum(text.count(one) for one in "]}")


def _value(text: str) -> str:
    return text.partition("=")[2]


def _select(tree: Any, name: str) -> Any:
    for step in name.split("."):  # it composed, so all of them are there
        tree = tree[int(step)] if isinstance(tree, list) else tree[step]
    return tree


def _changed(tree: Any, masked: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(tree, dict) and isinstance(masked, dict):
        for key, value in tree.items():
            yield from _changed(value, masked[key], f"{name}.{key}" if name else str(key))
    elif tree != masked:
        yield name, masked


def _hydra(value: Any) -> str:
    """A value in the grammar of overrides."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_hydra(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_hydra, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return "null" if value is None else str(value).lower()
