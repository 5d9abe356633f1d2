"""What an answer's text has to be: from a request's words to a grammar, or to a refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from appliance.errors import ApplianceError, bad_request
from appliance.generation.json_schema import SchemaPath, TooComplex, closed, ends, places
from appliance.generation.regex import with_ascii_classes
from appliance.generation.rules import WHITESPACE
from engine.sampling.grammar import Grammar, fault

LONGEST = 1 << 17  # characters of a schema, of all choices, of rules
LONGEST_REGEX = 1 << 14
DEEPEST = 64  # levels of a schema
CHECKED = 128  # structures that are remembered
ANY_OBJECT = '{"type":"object"}'
OWN = "x-guidance"  # where llguidance's options stand in a schema
UNIMPLEMENTED = re.compile(r"Unimplemented keys: (\[.*\])")
REGEX_FAULT = re.compile(r"regex parse error:.*?\nerror: ([^\n]+)", re.DOTALL)
OVERLAPPING = "oneOf constraints are not supported"
LOOKAROUND = "lookarounds not supported"


@dataclass(slots=True, frozen=True)
class Structure:
    """`text` is the JSON of a schema or of a list of choices, a regular expression, or rules.

    Rules are Lark's or, with `::=` in them, GBNF. `whitespace` is a regular expression of what may
    stand between parts of JSON. `param` is where the request says it.
    """

    kind: Literal["json", "regex", "choice", "grammar"]
    text: str
    param: str = field(compare=False)
    whitespace: str = WHITESPACE


@lru_cache(CHECKED)
def grammar_of(structure: Structure) -> Grammar:
    """Raises ApplianceError 400 for one that cannot be followed, with the reason and the place."""
    longest = LONGEST_REGEX if structure.kind == "regex" else LONGEST
    if len(structure.text) > longest:
        raise bad_request(
            f"'{structure.param}' may hold at most {longest} characters.",
            structure.param,
            "invalid_value",
        )
    text = BUILDERS[structure.kind](structure)
    reason = fault(text)
    if reason is not None:
        raise _refusal(structure, reason)
    return Grammar(text)


def _from_schema(structure: Structure) -> str:
    from llguidance import LLMatcher

    schema = json.loads(structure.text)
    if not isinstance(schema, dict | bool):
        raise _unusable(structure, "a JSON schema is an object, true or false")
    if isinstance(schema, dict) and OWN in schema:  # it could have keywords left out in silence
        raise _unusable(
            structure, f"'{OWN}' is the grammar engine's own", f"{structure.param}.{OWN}"
        )
    if schema is False:
        raise _unusable(structure, "no value fits it")
    for path, _ in places(schema):
        if len(path) > DEEPEST:
            raise _unusable(structure, f"it is more than {DEEPEST} levels deep")
    try:
        endless = not ends(schema)
    except TooComplex:
        raise _unusable(structure, "its references refer to too many others") from None
    if endless:
        raise _unusable(structure, "no value that it describes has an end: it needs itself")
    text: str = LLMatcher.grammar_from_json_schema(
        "{}" if schema is True else json.dumps(closed(schema)),
        overrides={"whitespace_pattern": structure.whitespace},
    )
    return text


def _from_regex(structure: Structure) -> str:
    from llguidance import LLMatcher

    text: str = LLMatcher.grammar_from_regex(with_ascii_classes(structure.text))
    return text


def _from_choices(structure: Structure) -> str:
    from llguidance import LLMatcher

    choices = json.loads(structure.text)
    rules = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    text: str = LLMatcher.grammar_from_lark(f"start: {rules}")
    return text


def _from_rules(structure: Structure) -> str:
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        rules = any_to_lark(structure.text)
    except Exception as error:  # it raises plain Exception for what it does not take
        raise _unusable(structure, _one_line(str(error))) from None
    text: str = LLMatcher.grammar_from_lark(rules)
    return text


BUILDERS = {
    "json": _from_schema,
    "regex": _from_regex,
    "choice": _from_choices,
    "grammar": _from_rules,
}


def _refusal(structure: Structure, reason: str) -> ApplianceError:
    """In words for whoever wrote it, at the place where it is, if that can be told."""
    found = UNIMPLEMENTED.search(reason)
    if found is None or structure.kind != "json":
        return _unusable(structure, _one_line(reason))
    keywords = set(json.loads(found[1]))
    path = next(_with_keyword(structure, keywords), None)
    names = " and ".join(sorted(f"'{name}'" for name in keywords))
    return _unusable(structure, f"answers cannot be held to {names}", path)


def _with_keyword(structure: Structure, keywords: set[str]) -> Iterator[str]:
    for path, schema in places(json.loads(structure.text)):
        for keyword in keywords & schema.keys():
            yield f"{structure.param}{written(path)}.{keyword}"


def written(path: SchemaPath) -> str:
    """`.properties.a.anyOf[0]`"""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)


def _unusable(structure: Structure, reason: str, path: str | None = None) -> ApplianceError:
    return bad_request(
        f"'{structure.param}' cannot be used: {reason}.",
        (path or structure.param)[:200],
        "invalid_value",
    )


def _one_line(reason: str) -> str:
    parsed = REGEX_FAULT.search(reason)
    if parsed is not None:
        reason = f"the regular expression is wrong: {parsed[1]}"
    elif reason.startswith(OVERLAPPING):
        reason = "the choices of a 'oneOf' overlap, or may: take 'anyOf'"
    elif LOOKAROUND in reason:
        reason = "a regular expression cannot look around, nor ask for a word's or a line's edge"
    return re.sub(r"\s+", " ", reason).strip(" .")[:300]
