"""Calls as JSON objects between `<tool_call>` and `</tool_call>`.

Qwen2.5, Qwen3, Qwen2.5-VL, Qwen3-VL, QwQ, Hermes 2 Pro and Hermes 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.generation.calls.assembly import Assembly
from appliance.generation.calls.format import call_id
from appliance.generation.calls.json_call import JsonCall, call_rule
from appliance.generation.calls.reading import Prose, Until
from appliance.generation.calls.tool import Tool
from appliance.generation.parts import Parts
from appliance.generation.rules import Rules

BEGIN, END = "<tool_call>", "</tool_call>"


class Hermes:
    """`CallFormat`."""

    marks = (BEGIN, END)

    def calls(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> str:
        body = f"GAP {call_rule(rules, tools, 'arguments')} GAP {rules.mark(END)}"
        begin = rules.mark(BEGIN)
        more = f" (GAP {begin} {body})*" if parallel else ""
        return rules.add("calls", f"{begin} {body}{more}")

    def amid_text(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> str:
        body = f"{rules.until(BEGIN)} GAP {call_rule(rules, tools, 'arguments')} GAP"
        body += f" {rules.mark(END)}"
        text = rules.text()
        mixed = f"({body})* {text}" if parallel else f"{text} | {body}"
        return rules.add("amid_text", mixed)

    def unheld(self, tool: Tool) -> None:
        return None

    def parser(self, tools: Sequence[Tool]) -> HermesParser:
        return HermesParser(frozenset(tool.name for tool in tools))


class HermesParser:
    """`AnswerParser`."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._assembly = Assembly(call_id)
        self._prose = Prose()
        self._begin, self._end = Until(BEGIN), Until(END)
        self._call: JsonCall | None = None
        self._between = False  # behind a call's braces, before its end

    def push(self, text: str) -> Parts:
        parts, rest = Parts(), text
        while rest:
            if self._between:
                _, behind = self._end.push(rest)
                self._between, rest = behind is None, behind or ""
            elif self._call is not None:
                rest = self._called(self._call, rest, parts)
            else:
                before, behind = self._begin.push(rest)
                parts.add(Parts(self._prose.push(before)))
                if behind is not None:
                    self._call = JsonCall(self._names)
                rest = behind or ""
        return parts

    def _called(self, call: JsonCall, text: str, parts: Parts) -> str:
        begun = call.begun
        arguments, rest = call.push(text)
        if call.failed:
            self._call = None
            parts.add(Parts(self._prose.push(BEGIN + call.raw)))
            return ""
        if call.begun and not begun:
            self._prose.cut()
            parts.add(self._assembly.begin(call.name or ""))
        parts.add(self._assembly.arguments(arguments))
        if call.done:
            self._call, self._between = None, True
        return rest

    def finish(self) -> Parts:
        text = self._begin.finish()
        if self._call is not None and not self._call.begun:
            text = BEGIN + self._call.raw
        return Parts(self._prose.push(text) + self._prose.finish())
