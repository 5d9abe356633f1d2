"""Calls as tags: `<tool_call>`, `<function=name>`, and a `<parameter=key>` for each argument.

Qwen3-Coder, Qwen3-Next-Coder, Qwen3.5, Qwen3.6, Nemotron 3.

Texts stand as they are between the lines of their tags, everything else as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from appliance.generation.calls.assembly import Assembly
from appliance.generation.calls.format import call_id
from appliance.generation.calls.keywords import TYPES, Keyword, in_order, keywords, of_kind, unheld
from appliance.generation.calls.reading import SPACES, Prose, Until
from appliance.generation.calls.tool import Tool
from appliance.generation.parts import Parts
from appliance.generation.rules import Rules, literal

BEGIN, END = "<tool_call>", "</tool_call>"
FUNCTION, PARAMETER = "<function=", "<parameter="
FUNCTION_END, PARAMETER_END = "</function>", "</parameter>"


class Qwen3Coder:
    """`CallFormat`."""

    marks = (BEGIN, END)

    def calls(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> str:
        begin, body = rules.mark(BEGIN), self._body(rules, tools)
        more = f" (GAP {begin} {body})*" if parallel else ""
        return rules.add("calls", f"{begin} {body}{more}")

    def amid_text(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> str:
        body = f"{rules.until(BEGIN)} {self._body(rules, tools)}"
        text = rules.text()
        return rules.add("amid_text", f"({body})* {text}" if parallel else f"{text} | {body}")

    def unheld(self, tool: Tool) -> str | None:
        return unheld(tool, plain_texts=True)

    def parser(self, tools: Sequence[Tool]) -> Qwen3CoderParser:
        return Qwen3CoderParser(tools)

    @staticmethod
    def _body(rules: Rules, tools: Sequence[Tool]) -> str:
        rules.add("plain_text[lazy]", rf"/(?s:.*)\n/ {literal(PARAMETER_END)}")
        calls = []
        for number, tool in enumerate(tools):
            given = _parameters(rules, tool, number)
            head = literal(f"{FUNCTION}{tool.name}>\n")
            calls.append(rules.add(f"call_{number}", f"{head} {given} {literal(FUNCTION_END)}"))
        return rules.add("call", f"GAP ({' | '.join(calls)}) GAP {rules.mark(END)}")


def _parameters(rules: Rules, tool: Tool, number: int) -> str:
    listed = keywords(tool)
    if listed is None:
        one = rf"{literal(PARAMETER)} /[A-Za-z_][A-Za-z0-9_]{{0,63}}/ {literal(chr(62) + chr(10))}"
        return rules.add(f"any_{number}", f'({one} plain_text "\\n")*')

    def write(keyword: Keyword) -> str:
        return _parameter(rules, keyword, tool.lenient)

    return in_order(rules, f"args_{number}", listed, write, "")


def _parameter(rules: Rules, keyword: Keyword, lenient: bool) -> str:
    head = literal(f"{PARAMETER}{keyword.name}>\n")
    end = literal(f"\n{PARAMETER_END}\n")
    values = keyword.schema.get("enum", [keyword.schema.get("const")])
    if "const" in keyword.schema or "enum" in keyword.schema:
        return f"{head} ({' | '.join(literal(_written(value)) for value in values)}) {end}"
    if "string" in keyword.kinds:
        return f'{head} plain_text "\\n"'
    return f"{head} {rules.json(json.dumps(keyword.schema), lenient=lenient)} {end}"


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class Qwen3CoderParser:
    """`AnswerParser`."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._kinds: Mapping[str, Mapping[str, frozenset[str]]] = {
            tool.name: {one.name: one.kinds for one in keywords(tool) or ()} for tool in tools
        }
        self._assembly = Assembly(call_id)
        self._prose, self._begin = Prose(), Until(BEGIN)
        self._raw: str | None = None  # of a call, from its mark on, until its name is known
        self._name: str | None = None
        self._tags = ""  # of a call, what is not read yet between its arguments
        self._key: str | None = None  # of the argument that is being read
        self._value: list[str] = []
        self._ended = Until(PARAMETER_END)
        self._count = 0

    def push(self, text: str) -> Parts:
        parts, rest = Parts(), text
        while rest:
            if self._name is not None:
                rest = self._parameters(rest, parts)
            elif self._raw is not None:
                rest = self._function(rest, parts)
            else:
                before, behind = self._begin.push(rest)
                parts.add(Parts(self._prose.push(before)))
                self._raw = None if behind is None else ""
                rest = behind or ""
        return parts

    def _function(self, text: str, parts: Parts) -> str:
        """The head of a call, or what is none."""
        self._raw = raw = (self._raw or "") + text
        ahead = raw.lstrip(SPACES)
        if FUNCTION.startswith(ahead[: len(FUNCTION)]) and ">" not in ahead:
            return ""
        name, found, behind = ahead.removeprefix(FUNCTION).partition(">")
        self._raw = None
        if not found or not ahead.startswith(FUNCTION) or name not in self._kinds:
            parts.add(Parts(self._prose.push(BEGIN + raw)))
            return ""
        self._prose.cut()
        self._name, self._count, self._tags = name, 0, ""
        parts.add(self._assembly.begin(name))
        return behind

    def _parameters(self, text: str, parts: Parts) -> str:
        """Arguments as they become whole, up to the end of the call."""
        while text:
            if self._key is not None:
                value, behind = self._ended.push(text)
                self._value.append(value)
                if behind is None:
                    return ""
                self._argument(self._key, "".join(self._value), parts)
                self._key, text = None, behind
                continue
            self._tags += text
            ahead = self._tags.lstrip(SPACES)
            if ahead.startswith(PARAMETER):
                head, found, text = ahead.partition(">")
                if found:
                    self._key, self._value, self._tags = head.removeprefix(PARAMETER), [], ""
                continue
            _, found, rest = ahead.partition(END)
            if found:
                parts.add(self._assembly.arguments("}" if self._count else "{}"))
                self._name = None
                return rest
            return ""
        return ""

    def _argument(self, key: str, written: str, parts: Parts) -> None:
        before = ", " if self._count else "{"
        value = written.removeprefix("\n").removesuffix("\n")
        name = json.dumps(key, ensure_ascii=False)
        known = self._kinds[self._name or ""].get(key, frozenset(TYPES))
        parts.add(self._assembly.arguments(f"{before}{name}: {as_json(value, known)}"))
        self._count += 1

    def finish(self) -> Parts:
        text = self._begin.finish() if self._raw is None else BEGIN + self._raw
        return Parts(self._prose.push(text) + self._prose.finish())


def as_json(written: str, kinds: frozenset[str]) -> str:
    """A value as JSON: of another type than a string where it is one that may stand there."""
    try:
        value = json.loads(written)
    except (ValueError, RecursionError):
        value = written
    if not isinstance(value, str) and any(of_kind(value, kind) for kind in kinds):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(written, ensure_ascii=False)
