"""Calls as JSON objects that are the whole answer, several set apart by semicolons.

Llama 3.1, 3.2 and 3.3, with or without `<|python_tag|>` before the first.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.generation.calls.assembly import Assembly
from appliance.generation.calls.format import call_id
from appliance.generation.calls.json_call import JsonCall, beginning, call_rule
from appliance.generation.calls.leading import calls_or_text
from appliance.generation.calls.reading import SPACES
from appliance.generation.calls.tool import Tool
from appliance.generation.parts import Parts
from appliance.generation.rules import Rules

TAG = "<|python_tag|>"


class Llama3Json:
    """`CallFormat`."""

    marks = (TAG,)

    def calls(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> str:
        call = call_rule(rules, tools, "parameters")
        more = f' (GAP ";" GAP {call})*' if parallel else ""
        return rules.add("calls", f"{rules.mark(TAG)}? {call}{more}")

    def amid_text(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> str:
        calls = self.calls(rules, tools, parallel=parallel)
        return calls_or_text(rules, calls, beginning([tool.name for tool in tools]))

    def unheld(self, tool: Tool) -> None:
        return None

    def parser(self, tools: Sequence[Tool]) -> Llama3JsonParser:
        return Llama3JsonParser(frozenset(tool.name for tool in tools))


class Llama3JsonParser:
    """`AnswerParser`."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._assembly = Assembly(call_id)
        self._raw = ""  # what came since the latest call
        self._call: JsonCall | None = None
        self._calls = 0
        self._text = False

    def push(self, text: str) -> Parts:
        parts, rest = Parts(), text
        while rest and not self._text:
            if self._call is None or not self._call.begun:
                self._raw += rest
            if self._call is None:
                rest = self._raw.lstrip(SPACES + ";" if self._calls else SPACES)
                rest = rest.removeprefix(TAG).lstrip(SPACES)
                if TAG.startswith(rest):  # or may become it
                    return parts
                self._call = JsonCall(self._names)
            rest = self._called(self._call, rest, parts)
        parts.add(Parts(rest))
        return parts

    def _called(self, call: JsonCall, text: str, parts: Parts) -> str:
        begun = call.begun
        arguments, rest = call.push(text)
        if call.failed:
            self._text = True
            return self._raw
        if call.begun and not begun:
            parts.add(self._assembly.begin(call.name or ""))
        parts.add(self._assembly.arguments(arguments))
        if call.done:
            self._call, self._raw = None, ""
            self._calls += 1
        return rest

    def finish(self) -> Parts:
        called = self._call.begun if self._call is not None else self._calls > 0
        return Parts("" if self._text or called else self._raw)
