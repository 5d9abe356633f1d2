"""Rules for a grammar in which text, a model's own marks and JSON follow each other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from engine.sampling.grammar import Grammar

# Between parts of JSON: none, a space, or a line's end and what indents the next. Any amount would
# let a model that knows no better go on for ever.
WHITESPACE = r"( |\r?\n[ \t]{0,64})?"
STRUCTURE = "structure"


class Rules:
    """Lark's, as llguidance reads them. Methods return what stands for a thing in other rules.

    `added` are the tokenizer's added tokens by their text, `special` those that are never text. For
    llguidance most of both are no text at all: free text has to name those that may come in it.
    """

    def __init__(
        self, added: Mapping[str, int], special: Iterable[str], marks: Iterable[str]
    ) -> None:
        self._added = added
        apart = {*special, *marks}
        words = sorted(index for text, index in added.items() if text not in apart)
        self._rules = {"GAP": r"/[ \r\n\t]{0,8}/", "TEXT": r"/(?s:.*)/"}
        self._lead = self._rest = ""
        if words:
            self.add("word", f"<[{_ranges(words)}]>")
            self._lead, self._rest = "(TEXT word)* ", " (word TEXT)*"

    def add(self, name: str, body: str) -> str:
        """A rule, or with `name` in capitals a terminal."""
        self._rules[name] = body
        return name

    def mark(self, text: str) -> str:
        """A mark: the token that it is, if it is one, or its characters."""
        token = self._added.get(text)
        return literal(text) if token is None else f"(<[{token}]> | {literal(text)})"

    def text(self, first: str = "TEXT") -> str:
        """Any text at all, or one that begins with a terminal of its own."""
        return f"{first}{self._rest}"

    def until(self, mark: str) -> str:
        """Any text up to the first `mark`, and the mark."""
        name = f"until_{len(self._rules)}"
        self._rules[f"{name}_spelled[lazy]"] = f"TEXT {literal(mark)}"
        token = self._added.get(mark)
        by_token = "" if token is None else f"{self._lead}TEXT <[{token}]> | "
        return self.add(name, f"{by_token}{self._lead}{name}_spelled")

    def json(self, schema: str, *, lenient: bool = False) -> str:
        """A JSON value of a schema; with `lenient` one that may break what cannot be held to."""
        given = json.loads(schema)
        given = {} if given is True else given
        options: dict[str, object] = {"whitespace_pattern": WHITESPACE}
        if lenient:
            options |= {"lenient": True, "coerce_one_of": True}
        return f"%json {json.dumps(given | {'x-guidance': options}, ensure_ascii=False)}"

    def grammar(self, start: str, structure: Grammar | None = None) -> Grammar:
        """All of it, where `@structure` in rules is another grammar."""
        rules = {"start": start, **self._rules}
        text = "\n".join(f"{name}: {body}" for name, body in rules.items())
        grammars: list[dict[str, object]] = [{"lark_grammar": text}]
        if structure is not None:
            first, *others = json.loads(structure.text)["grammars"]
            grammars += [{**first, "name": STRUCTURE}, *others]
        return Grammar(json.dumps({"grammars": grammars}))


def literal(text: str) -> str:
    """Exactly that text."""
    return json.dumps(text, ensure_ascii=False)


def _ranges(numbers: list[int]) -> str:
    """`1-3,7` for 1, 2, 3 and 7."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(f"{first}-{last}" if first != last else f"{first}" for first, last in found)
