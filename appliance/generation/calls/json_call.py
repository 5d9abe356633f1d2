"""A call as a JSON object of a name and arguments, in this order."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from appliance.generation.calls.reading import SPACES, JsonExtent
from appliance.generation.calls.tool import Tool
from appliance.generation.rules import Rules

GAP = r"[ \r\n\t]{0,8}"
NAME = "name"
ARGUMENTS = ("arguments", "parameters")
STRING = ""  # in place of what is read there
LONGEST = 256  # characters of a name, with its quotes


def call_rule(rules: Rules, tools: Sequence[Tool], arguments: str) -> str:
    """A rule for a call of one of the tools; `arguments` is the key that they stand under.

    The head is one terminal: beside a terminal for text, which goes on as long as it can, a first
    brace alone would be text.
    """
    calls = []
    for number, tool in enumerate(tools):
        head = rules.add(f"HEAD_{number}", f"/{_beginning(tool.name)}{GAP},{_key(arguments)}/")
        values = rules.json(tool.parameters, lenient=tool.lenient)
        calls.append(rules.add(f"call_{number}", f'{head} {values} GAP "}}"'))
    return rules.add("call", " | ".join(calls))


def beginning(names: Sequence[str]) -> str:
    """A regular expression for how calls of these begin, up to what nothing but a call has."""
    return "|".join(map(_beginning, names))


def _beginning(name: str) -> str:
    return rf"\{{{_key(NAME)}{pattern(json.dumps(name))}"


def _key(name: str) -> str:
    return f'{GAP}"{name}"{GAP}:{GAP}'


def pattern(text: str) -> str:
    """A regular expression for exactly that text, inside slashes."""
    return re.sub(r"[^A-Za-z0-9_ \"]", lambda found: "\\" + found[0], text)


class JsonCall:
    """One call while it comes.

    It is `failed` once it is known to be none, `begun` once it is known to be one, and `done` with
    the brace that closes it. `raw` is what came until either was known.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self.name: str | None = None
        self.failed = self.done = False
        self.raw = ""
        self._head = ["{", f'"{NAME}"', ":", STRING, ",", STRING, ":"]
        self._piece = ""
        self._extent: JsonExtent | None = None
        self._ended = False

    @property
    def begun(self) -> bool:
        return self._extent is not None

    def push(self, text: str) -> tuple[str, str]:
        """What `text` adds to the arguments, and what of it stands behind the call."""
        if not self.begun:
            self.raw += text
        for place, character in enumerate(text):
            if not self._head:
                return self._arguments(text[place:])
            if self._piece or character not in SPACES:
                self._step(character)
            if self.failed:
                break
        return "", ""

    def _step(self, character: str) -> None:
        """The next character of the head."""
        self._piece += character
        wanted = self._head[0]
        if wanted is not STRING:
            self.failed = not wanted.startswith(self._piece)
            whole = self._piece == wanted
        else:
            # no name that can be meant has a quote in it
            whole = len(self._piece) > 1 and character == '"'
            known = self._names if self.name is None else ARGUMENTS
            self.failed = self._piece[0] != '"' or (whole and self._piece[1:-1] not in known)
            if whole and self.name is None:
                self.name = self._piece[1:-1]
        self.failed |= len(self._piece) > LONGEST
        if whole:
            self._head.pop(0)
            self._piece = ""

    def _arguments(self, text: str) -> tuple[str, str]:
        if self._extent is None:
            text = text.lstrip(SPACES)
            self.failed = bool(text) and text[0] != "{"
            if not text or self.failed:
                return "", ""
            self._extent = JsonExtent()
        arguments = ""
        if not self._ended:
            end = self._extent.push(text)
            if end is None:
                return text, ""
            self._ended, arguments, text = True, text[:end], text[end:]
        text = text.lstrip(SPACES)
        self.done = bool(text)
        return arguments, text[1:]
