"""Calls as a Python list of calls that is the whole answer: `[weather(city="Oslo", days=2)]`.

Llama 4, with or without `<|python_start|>` before it, Llama 3.2 1B and 3B, ToolACE, OLMo 3.

Values are Python's where they stand alone. Inside of lists and dictionaries an answer that is held
to a schema has JSON's `true`, `false` and `null`; Python's are understood there too.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

from appliance.generation.calls.assembly import Assembly
from appliance.generation.calls.format import call_id
from appliance.generation.calls.json_call import GAP, pattern
from appliance.generation.calls.keywords import TYPES, Keyword, in_order, keywords, kinds, unheld
from appliance.generation.calls.leading import calls_or_text
from appliance.generation.calls.reading import SPACES
from appliance.generation.calls.tool import Tool
from appliance.generation.parts import Parts
from appliance.generation.rules import Rules, literal

START, END = "<|python_start|>", "<|python_end|>"
WORDS = {"boolean": ("True", "False"), "null": ("None",)}
LONGEST_NAME = 256
OPENING, CLOSING, QUOTES = "([{", ")]}", "'\""


class Pythonic:
    """`CallFormat`."""

    marks = (START, END)

    def calls(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> str:
        firsts, others = [], []
        for number, tool in enumerate(tools):
            given = _arguments(rules, tool, number)
            head = rules.add(f"HEAD_{number}", f"/{_beginning(tool.name)}/")
            firsts.append(rules.add(f"first_call_{number}", f'{head} {given} ")"'))
            others.append(rules.add(f"call_{number}", f'{literal(tool.name + "(")} {given} ")"'))
        more = f' ("," GAP ({" | ".join(others)}))*' if parallel else ""
        start, end = rules.mark(START), rules.mark(END)
        return rules.add("calls", f'{start}? ({" | ".join(firsts)}){more} "]" {end}?')

    def amid_text(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> str:
        beginning = "|".join(_beginning(tool.name) for tool in tools)
        return calls_or_text(rules, self.calls(rules, tools, parallel=parallel), beginning)

    def unheld(self, tool: Tool) -> str | None:
        return unheld(tool, plain_texts=False)

    def parser(self, tools: Sequence[Tool]) -> PythonicParser:
        return PythonicParser(frozenset(tool.name for tool in tools))


def _beginning(name: str) -> str:
    return rf"\[{GAP}{pattern(name)}\("


def _arguments(rules: Rules, tool: Tool, number: int) -> str:
    listed = keywords(tool)
    if listed is None:
        one = f'/[A-Za-z_][A-Za-z0-9_]{{0,63}}/ "=" {_value(rules, {}, tool.lenient)}'
        return rules.add(f"any_{number}", f'({one} ("," GAP {one})*)?')

    def write(keyword: Keyword) -> str:
        return f"{literal(keyword.name + '=')} {_value(rules, keyword.schema, tool.lenient)}"

    return in_order(rules, f"args_{number}", listed, write, '"," GAP')


def _value(rules: Rules, schema: dict[str, Any], lenient: bool) -> str:
    """What stands for a value of a schema."""
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return f"({' | '.join(literal(_written(value)) for value in values)})"
    found = kinds(schema)
    words = [literal(word) for kind in WORDS if kind in found for word in WORDS[kind]]
    others = [kind for kind in TYPES if kind in found and kind not in WORDS]
    if not words:
        return rules.json(json.dumps(schema), lenient=lenient)
    if not others:
        return f"({' | '.join(words)})"
    rest = rules.json(json.dumps({**schema, "type": others}), lenient=lenient)
    return f"({' | '.join(words)} | {rest})"


def _written(value: Any) -> str:
    """As Python has it."""
    if value is None or isinstance(value, bool):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


class PythonicParser:
    """`AnswerParser`."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._assembly = Assembly(call_id)
        self._raw: str | None = ""  # from the beginning on, while it is no call yet
        self._piece = ""  # of a name, a keyword or a value
        self._key: str | None = None
        self._inside = self._over = False  # of a call's brackets; behind the last call
        self._count = 0  # arguments of this call
        self._nesting, self._quote, self._escaped = 0, "", False

    def push(self, text: str) -> Parts:
        parts, read, before = Parts(), 0, ""
        while read < len(text) and not self._over:
            character = text[read]
            read += 1
            if self._inside:
                self._argument(character, parts)
                continue
            if self._raw is not None:
                self._raw += character
            if not self._name(character, parts):
                self._over, before = True, self._raw or ""
        if self._over and self._raw is not None:  # it is known to be no call
            parts.add(Parts(before + text[read:]))
        return parts

    def _name(self, character: str, parts: Parts) -> bool:
        """The next character outside of brackets; False where no further call can come."""
        if character == "(":
            name = self._piece.strip(SPACES + ",").removeprefix(START).lstrip(SPACES)
            name = name.removeprefix("[").strip(SPACES)
            if name not in self._names:
                return False
            self._raw, self._piece = None, ""
            self._inside, self._count = True, 0
            parts.add(self._assembly.begin(name))
            return True
        self._piece += character
        ahead = self._piece.strip(SPACES)
        if self._raw is None:
            return character != "]" and len(ahead) <= LONGEST_NAME
        if START.startswith(ahead):
            return True
        ahead = ahead.removeprefix(START).lstrip(SPACES)
        if not ahead:
            return True
        name = ahead[1:].lstrip(SPACES)
        return ahead[0] == "[" and any(one.startswith(name) for one in self._names)

    def _argument(self, character: str, parts: Parts) -> None:
        if self._key is None:
            if character == ")":
                self._end(parts)
            elif character == "=":
                self._key, self._piece = self._piece.strip(SPACES + ","), ""
            else:
                self._piece += character
            return
        if self._quote:
            self._quoted(character)
        elif character in QUOTES:
            self._quote = character
        elif character in OPENING:
            self._nesting += 1
        elif self._nesting and character in CLOSING:
            self._nesting -= 1
        elif not self._nesting and character in ",)":
            self._value(parts)
            if character == ")":
                self._end(parts)
            return
        self._piece += character

    def _quoted(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == self._quote:
            self._quote = ""

    def _value(self, parts: Parts) -> None:
        before = ", " if self._count else "{"
        key = json.dumps(self._key, ensure_ascii=False)
        parts.add(self._assembly.arguments(f"{before}{key}: {as_json(self._piece.strip(SPACES))}"))
        self._count += 1
        self._key, self._piece = None, ""

    def _end(self, parts: Parts) -> None:
        parts.add(self._assembly.arguments("}" if self._count else "{}"))
        self._inside, self._piece = False, ""

    def finish(self) -> Parts:
        return Parts("" if self._raw is None or self._over else self._raw)


def as_json(written: str) -> str:
    """A Python literal, or JSON, as JSON; what is neither is a string."""
    for read in (json.loads, ast.literal_eval):
        try:
            return json.dumps(read(written), ensure_ascii=False, allow_nan=False)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return json.dumps(written, ensure_ascii=False)
