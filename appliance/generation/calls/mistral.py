"""Calls behind `[TOOL_CALLS]`: a JSON list, or where there is an `[ARGS]` a name and its arguments.

The list is what Mistral 7B v0.3, Nemo and Small 3 write, the other Small 3.2, Magistral and
Devstral. Which of them a model writes is told by its tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.generation.calls.assembly import Assembly
from appliance.generation.calls.format import short_call_id
from appliance.generation.calls.json_call import JsonCall, call_rule
from appliance.generation.calls.reading import SPACES, JsonExtent, Prose, Until
from appliance.generation.calls.tool import Tool
from appliance.generation.parts import Parts
from appliance.generation.rules import Rules, literal

BEGIN, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"


class MistralList:
    """`CallFormat`: `[TOOL_CALLS] [{"name": …, "arguments": …}, …]`."""

    marks = (BEGIN,)

    def calls(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> str:
        return rules.add("calls", f"{rules.mark(BEGIN)} {self._list(rules, tools, parallel)}")

    def amid_text(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> str:
        calls = f"{rules.until(BEGIN)} {self._list(rules, tools, parallel)}"
        return rules.add("amid_text", f"{rules.text()} | {calls}")

    def unheld(self, tool: Tool) -> None:
        return None

    def parser(self, tools: Sequence[Tool]) -> MistralListParser:
        return MistralListParser(frozenset(tool.name for tool in tools))

    @staticmethod
    def _list(rules: Rules, tools: Sequence[Tool], parallel: bool) -> str:
        call = call_rule(rules, tools, "arguments")
        more = f' (GAP "," GAP {call})*' if parallel else ""
        return f'GAP "[" GAP {call}{more} GAP "]"'


class MistralListParser:
    """`AnswerParser`."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._assembly = Assembly(short_call_id)
        self._prose, self._begin = Prose(), Until(BEGIN)
        self._raw: str | None = None  # from the mark on, while it is no call yet
        self._call: JsonCall | None = None
        self._calls = 0

    def push(self, text: str) -> Parts:
        parts, rest = Parts(), text
        while rest:
            if self._call is not None:
                rest = self._called(self._call, rest, parts)
            elif self._calls or self._raw is not None:
                rest = self._between(rest, parts)
            else:
                before, behind = self._begin.push(rest)
                parts.add(Parts(self._prose.push(before)))
                self._raw = None if behind is None else BEGIN
                rest = behind or ""
        return parts

    def _between(self, text: str, parts: Parts) -> str:
        """Up to the next call, or to what shows that there is none."""
        if self._raw is not None:
            self._raw += text[0]
        if text[0] in SPACES + ("," if self._calls else "["):
            return text[1:]
        if text[0] == "{":
            self._call = JsonCall(self._names)
            self._raw = None if self._raw is None else self._raw[:-1]
            return text
        return self._given_up(text[1:], parts)

    def _given_up(self, text: str, parts: Parts) -> str:
        """A list that is none is text. Behind the end of one there is nothing."""
        raw, self._raw = self._raw, None
        if raw is None:
            return ""
        parts.add(Parts(self._prose.push(raw)))
        return text

    def _called(self, call: JsonCall, text: str, parts: Parts) -> str:
        begun = call.begun
        arguments, rest = call.push(text)
        if call.failed:
            self._call = None
            self._raw = None if self._raw is None else self._raw + call.raw
            return self._given_up("", parts)
        if call.begun and not begun:
            self._raw = None
            self._prose.cut()
            parts.add(self._assembly.begin(call.name or ""))
        parts.add(self._assembly.arguments(arguments))
        if call.done:
            self._call = None
            self._calls += 1
        return rest

    def finish(self) -> Parts:
        text = self._begin.finish() if self._raw is None else self._raw
        if self._call is not None and not self._call.begun and self._raw is not None:
            text += self._call.raw
        return Parts(self._prose.push(text) + self._prose.finish())


class MistralNamed:
    """`CallFormat`: `[TOOL_CALLS]name[ARGS]{…}`, all of it once more for each further call."""

    marks = (BEGIN, ARGS, CALL_ID)

    def calls(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> str:
        call = f"{rules.mark(BEGIN)} {self._call(rules, tools)}"
        return rules.add("calls", f"({call})+" if parallel else call)

    def amid_text(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> str:
        call = f"{rules.until(BEGIN)} {self._call(rules, tools)}"
        text = rules.text()
        return rules.add("amid_text", f"({call})* {text}" if parallel else f"{text} | {call}")

    def unheld(self, tool: Tool) -> None:
        return None

    def parser(self, tools: Sequence[Tool]) -> MistralNamedParser:
        return MistralNamedParser(frozenset(tool.name for tool in tools))

    @staticmethod
    def _call(rules: Rules, tools: Sequence[Tool]) -> str:
        given = rules.add("call_id", f"({rules.mark(CALL_ID)} /[A-Za-z0-9]{{9}}/)?")
        calls = [
            f"{literal(tool.name)} {given} {rules.mark(ARGS)} GAP "
            f"{rules.json(tool.parameters, lenient=tool.lenient)}"
            for tool in tools
        ]
        return rules.add("call", " | ".join(calls))


class MistralNamedParser:
    """`AnswerParser`."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._assembly = Assembly(short_call_id)
        self._prose, self._begin, self._args = Prose(), Until(BEGIN), Until(ARGS)
        self._head: str | None = None  # between the marks
        self._called = False  # inside of a call, behind its head
        self._extent: JsonExtent | None = None

    def push(self, text: str) -> Parts:
        parts, rest = Parts(), text
        while rest:
            if self._called:
                rest = self._arguments(rest, parts)
            elif self._head is not None:
                before, behind = self._args.push(rest)
                self._head += before
                rest = self._begun(self._head, behind, parts) if behind is not None else ""
            else:
                before, behind = self._begin.push(rest)
                parts.add(Parts(self._prose.push(before)))
                self._head = None if behind is None else ""
                rest = behind or ""
        return parts

    def _begun(self, head: str, text: str, parts: Parts) -> str:
        self._head = None
        name, _, given_id = head.partition(CALL_ID)
        if name not in self._names:
            parts.add(Parts(self._prose.push(BEGIN + head + ARGS)))
            return text
        self._prose.cut()
        self._called = True
        parts.add(self._assembly.begin(name, given_id))
        return text

    def _arguments(self, text: str, parts: Parts) -> str:
        if self._extent is None:
            text = text.lstrip(SPACES)
            if not text:
                return ""
            self._extent = JsonExtent()
        end = self._extent.push(text)
        parts.add(self._assembly.arguments(text[:end]))
        if end is None:
            return ""
        self._called, self._extent = False, None
        return text[end:]

    def finish(self) -> Parts:
        if self._head is not None:
            text = BEGIN + self._head + self._args.finish()
        else:
            text = "" if self._called else self._begin.finish()
        return Parts(self._prose.push(text) + self._prose.finish())
