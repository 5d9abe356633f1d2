"""Calls of tools, format by format: what grammars let through is what parsers read."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from appliance.generation.calls.formats import FORMATS, format_of
from appliance.generation.calls.mistral import ARGS
from appliance.generation.calls.pythonic import Pythonic
from appliance.generation.calls.qwen3_coder import Qwen3Coder
from appliance.generation.calls.tool import Tool, ToolUse
from appliance.generation.parts import AnswerParser, Parts
from appliance.generation.style import Reply, Style
from appliance.generation.thoughts import Reasoning, ThoughtParser
from tests.checkpoints.tokenization import byte_level_tokenizer

END = "<|im_end|>"
THINK = Reasoning("<think>", "</think>")
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["C", "F", None]},
        "exact": {"type": ["boolean", "null"]},
        "where": {"$ref": "#/$defs/place"},
        "tags": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
        "note": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
    },
    "required": ["city", "exact"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"x": {"type": "integer"}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = (
    Tool("weather", json.dumps(WEATHER)),
    Tool("weather-now", json.dumps(NOTHING)),
)
# Where texts stand as they are, one that knows nothing finds no end.
UNTOLD = {"city": {"enum": ["Oslo", "Rome\n", True]}, "note": {"type": "null"}}
TEXTLESS: dict[str, Any] = {**WEATHER, "properties": {**WEATHER["properties"], **UNTOLD}}
NAMES = [*FORMATS, "mistral_named"]
CITY = {"city": "Oslo", "exact": True}
WRITTEN: list[tuple[str, str, list[tuple[str, Any]], str]] = [
    (
        "hermes",
        'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", '
        '"exact": true}}\n</tool_call>\n<tool_call>\n{"name": "weather-now", "arguments": {}}\n'
        "</tool_call>",
        [("weather", CITY), ("weather-now", {})],
        "Let me see.",
    ),
    (
        "hermes",
        '<tool_call>{"name":"weather","arguments":{"city":"a \\"}{","exact":null}}</tool_call>Yes.',
        [("weather", {"city": 'a "}{', "exact": None})],
        "Yes.",
    ),
    ("hermes", "No call.\n\n<tool", [], "No call.\n\n<tool"),
    ("hermes", " \n", [], " \n"),
    (
        "llama3_json",
        '{"name": "weather", "parameters": {"city": "Oslo", "exact": true}}',
        [("weather", CITY)],
        "",
    ),
    (
        "llama3_json",
        '<|python_tag|>{"name": "weather-now", "parameters": {}}; '
        '{"name": "weather", "parameters": {"city": "Oslo", "exact": true}}',
        [("weather-now", {}), ("weather", CITY)],
        "",
    ),
    ("llama3_json", '{"name": "Bob", "age": 3}', [], '{"name": "Bob", "age": 3}'),
    ("llama3_json", " It is {warm}.", [], " It is {warm}."),
    (
        "mistral",
        'So: [TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo", "exact": true}}, '
        '{"name": "weather-now", "arguments": {}}]',
        [("weather", CITY), ("weather-now", {})],
        "So:",
    ),
    (
        "mistral_named",
        '[TOOL_CALLS]weather[ARGS]{"city": "Oslo", "exact": true}[TOOL_CALLS]weather-now[ARGS]{}',
        [("weather", CITY), ("weather-now", {})],
        "",
    ),
    (
        "pythonic",
        "[weather(city='Oslo', exact=True, tags=[1, 2]), weather-now()]",
        [("weather", {**CITY, "tags": [1, 2]}), ("weather-now", {})],
        "",
    ),
    ("pythonic", "[weather, and so on](a link)", [], "[weather, and so on](a link)"),
    (
        "qwen3_coder",
        "First.\n<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n"
        "<parameter=exact>\ntrue\n</parameter>\n</function>\n</tool_call>",
        [("weather", CITY)],
        "First.",
    ),
    (
        "qwen3_coder",
        "<tool_call>\n<function=weather>\n<parameter=city>\n12\n\nlines\n</parameter>\n"
        "<parameter=exact>\nnull\n</parameter>\n<parameter=note>\nnull\n</parameter>\n"
        "</function>\n</tool_call>",
        [("weather", {"city": "12\n\nlines", "exact": None, "note": None})],
        "",
    ),
]
# Nobody may write these: a tool that there is not, arguments that break the schema, an early end.
FORBIDDEN = [
    ("hermes", '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>'),
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'),
    ("hermes", '<tool_call>\n{"name": "weather-now", "arguments": {}}'),
    ("llama3_json", '{"name": "weather", "parameters": {"city": 5, "exact": true}}'),
    ("mistral", '[TOOL_CALLS] [{"name": "weather", "arguments": {}}]'),
    ("mistral_named", "[TOOL_CALLS]weather[ARGS]{}"),
    ("pythonic", '[weather(city="Oslo")]'),
    ("pythonic", '[weather(exact=True, city="Oslo")]'),
    ("qwen3_coder", "<tool_call>\n<function=weather>\n</function>\n</tool_call>"),
]


@cache
def tokens(marked: bool) -> Tokenizer:
    """With marks that are tokens, some special and some not, or that are characters."""
    tokenizer = byte_level_tokenizer([END])
    if marked:
        plain = ["<tool_call>", "</tool_call>", "<think>", "</think>", "<table>"]
        special = ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>", "<|python_start|>"]
        tokenizer.add_tokens([AddedToken(text, special=False) for text in plain])
        tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    return tokenizer


@cache
def vocabulary(marked: bool) -> LLTokenizer:
    tokenizer = tokens(marked)
    end = tokenizer.token_to_id(END)
    return LLTokenizer(tokenizer.to_str(), n_vocab=tokenizer.get_vocab_size(), eos_token=[end])


def tools_of(name: str) -> tuple[Tool, ...]:
    """For a model that knows nothing."""
    return (Tool("weather", json.dumps(TEXTLESS)), TOOLS[1]) if name == "qwen3_coder" else TOOLS


def schema_of(tool: str | None, name: str) -> Any:
    """What calls of a tool in a format are held to."""
    return next(json.loads(one.parameters) for one in tools_of(name) if one.name == tool)


def style(name: str, marked: bool, reasoning: Reasoning | None = None) -> Style:
    decoder = tokens(marked).get_added_tokens_decoder()
    added = {token.content: index for index, token in decoder.items()}
    special = {token.content: index for index, token in decoder.items() if token.special}
    make = FORMATS[name.removesuffix("_named")]
    return Style(added, special, make([ARGS] if name.endswith("_named") else []), reasoning)


def matcher(
    of: Style, marked: bool, *, required: bool, parallel: bool = True, tools: Sequence[Tool] = TOOLS
) -> LLMatcher:
    reply = Reply(tools=ToolUse(tuple(tools), required, parallel))
    grammar = of.grammar(reply, thinking=False)
    assert grammar is not None
    return LLMatcher(vocabulary(marked), grammar.text, log_level=0)


def spoken(one: LLMatcher, marked: bool, choose: random.Random, begin: str = "") -> str | None:
    """What a model says that knows nothing, until it ends; None where it goes on too long."""
    tokenizer = tokens(marked)
    size, end = tokenizer.get_vocab_size(), tokenizer.token_to_id(END)
    closing = {tokenizer.token_to_id(text) for text in ('"', "}", "]", ")", "\n", "<", "/")}
    closing |= {end, *tokenizer.encode("</tool_call></parameter>", add_special_tokens=False).ids}
    row = torch.zeros(-(-size // 32), dtype=torch.int32)
    ids = tokenizer.encode(begin, add_special_tokens=False).ids
    assert one.consume_tokens(ids)
    while len(ids) < 400:
        row.zero_()
        one.unsafe_compute_mask_ptr(row.data_ptr(), row.numel() * 4)
        allowed = np.flatnonzero(np.unpackbits(row.numpy().view("u1"), bitorder="little")[:size])
        likely = [token for token in allowed if token in closing]
        token = int(choose.choice(likely if likely and choose.random() < 0.9 else list(allowed)))
        if token == end:
            return tokenizer.decode(ids, skip_special_tokens=False)
        assert one.consume_token(token)
        ids.append(token)
    return None


def parsed(parser: AnswerParser, text: str, cuts: Sequence[int] = ()) -> Parts:
    parts = Parts()
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        parts.add(parser.push(text[start:end]))
    parts.add(parser.finish())
    return parts


def shown(parts: Parts) -> tuple[Any, ...]:
    calls = [(call.index, call.name, call.arguments) for call in parts.tool_calls]
    return parts.text, parts.reasoning, calls


def all_cuts(text: str) -> Iterator[Sequence[int]]:
    yield range(1, len(text))
    for place in range(1, len(text)):
        yield [place]


@pytest.mark.parametrize("marked", [True, False], ids=["tokens", "characters"])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_knows_nothing_calls_rightly_where_it_must(name: str, marked: bool) -> None:
    choose, of, calls = random.Random(5), style(name, marked), 0
    assert of.calls is not None
    for turn in range(12):
        one = matcher(of, marked, required=True, parallel=turn % 2 == 0, tools=tools_of(name))
        text = spoken(one, marked, choose)
        if text is None:
            continue
        parts = parsed(of.calls.parser(tools_of(name)), text)
        assert shown(parts) == shown(
            parsed(of.calls.parser(tools_of(name)), text, range(1, len(text)))
        )
        assert not parts.text.strip(), text
        assert len(parts.tool_calls) >= 1 if turn % 2 == 0 else len(parts.tool_calls) == 1
        assert len({call.id for call in parts.tool_calls}) == len(parts.tool_calls)
        for call in parts.tool_calls:
            jsonschema.validate(json.loads(call.arguments), schema_of(call.name, name))
            calls += 1
    assert calls >= 6


@pytest.mark.parametrize("marked", [True, False], ids=["tokens", "characters"])
@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_has_begun_is_held_to_its_schema(name: str, marked: bool) -> None:
    begins = {
        "hermes": "Hm. <tool_call>",
        "llama3_json": '{"name": "weather", ',
        "mistral": "Hm. [TOOL_CALLS]",
        "mistral_named": "Hm. [TOOL_CALLS]",
        "pythonic": "[weather(",
        "qwen3_coder": "Hm. <tool_call>",
    }
    choose, of, whole = random.Random(6), style(name, marked), 0
    assert of.calls is not None
    for _ in range(12):
        one = matcher(of, marked, required=False, parallel=False, tools=tools_of(name))
        text = spoken(one, marked, choose, begins[name])
        if text is None:
            continue
        parts = parsed(of.calls.parser(tools_of(name)), text)
        (call,) = parts.tool_calls
        jsonschema.validate(json.loads(call.arguments), schema_of(call.name, name))
        whole += 1
    assert whole >= 4


@pytest.mark.parametrize(("name", "text", "calls", "prose"), WRITTEN, ids=str)
def test_what_models_write_is_allowed_and_read_at_any_cut(
    name: str, text: str, calls: list[tuple[str, Any]], prose: str
) -> None:
    for marked in (True, False):
        of = style(name, marked)
        assert of.calls is not None
        one = matcher(of, marked, required=False)
        ids = tokens(marked).encode(text, add_special_tokens=False).ids
        if "'" not in text.partition("(")[2]:  # Python's other quotes are read, and not written
            assert one.consume_tokens(ids), (marked, text)
            assert one.is_accepting(), (marked, text)
        whole = parsed(of.calls.parser(TOOLS), text)
        assert whole.text == prose
        assert [(c.name, json.loads(c.arguments)) for c in whole.tool_calls] == calls
        for cuts in all_cuts(text):
            assert shown(parsed(of.calls.parser(TOOLS), text, cuts)) == shown(whole)


@pytest.mark.parametrize(("name", "text"), FORBIDDEN)
def test_what_breaks_a_schema_cannot_be_written(name: str, text: str) -> None:
    for marked in (True, False):
        one = matcher(style(name, marked), marked, required=False)
        ids = tokens(marked).encode(text, add_special_tokens=False).ids
        assert one.try_consume_tokens(ids) < len(ids) or not one.is_accepting()


def test_text_may_hold_any_word_that_is_no_mark() -> None:
    of = style("hermes", True)
    text = "A <table> of <think>s, and </tool_call> is none"
    one = matcher(of, True, required=False)
    ids = tokens(True).encode(text.replace("</tool_call>", "it"), add_special_tokens=False).ids
    assert one.consume_tokens(ids)
    assert one.is_accepting()
    special = matcher(of, True, required=False)
    assert special.try_consume_tokens([tokens(True).token_to_id("[ARGS]")]) == 0


THOUGHTS = [
    (False, "<think>\nHm.\n</think>\n\nSo.", "Hm.", "So."),
    (True, "Hm.\n</think>So.", "Hm.", "So."),
    (True, "Hm. \n", "Hm.", ""),
    (False, "So. <think> is a word.", "", "So. <think> is a word."),
    (False, "\n<think>a</think>b</think>c", "a", "b</think>c"),
    (False, "<thin", "", "<thin"),
    (False, "<think></think>", "", ""),
    (True, "a </thin b", "a </thin b", ""),
]


@pytest.mark.parametrize(("begun", "text", "thought", "answer"), THOUGHTS)
def test_a_thought_is_told_from_the_answer(
    begun: bool, text: str, thought: str, answer: str
) -> None:
    for cuts in ([], *all_cuts(text)):
        parts = parsed(ThoughtParser(THINK, None, begun=begun, shown=True), text, cuts)
        assert (parts.reasoning, parts.text) == (thought, answer)
    hidden = parsed(ThoughtParser(THINK, None, begun=begun, shown=False), text)
    assert (hidden.reasoning, hidden.text) == ("", answer)


def test_a_call_comes_behind_a_thought() -> None:
    of = style("hermes", True, THINK)
    reply = Reply(tools=ToolUse(TOOLS, required=True))
    call = '<tool_call>{"name": "weather-now", "arguments": {}}</tool_call>'
    for thinking, text in [
        (True, "Hm.</think>\n\n" + call),
        (False, "<think>Hm. <tool_call> is a word</think>" + call),
        (False, call),
    ]:
        grammar = of.grammar(reply, thinking=thinking)
        assert grammar is not None
        one = LLMatcher(vocabulary(True), grammar.text, log_level=0)
        spelled = text.replace("Hm. <tool_call> is", "Hm. this is")
        assert one.consume_tokens(tokens(True).encode(spelled, add_special_tokens=False).ids)
        assert one.is_accepting()
        make = of.parser(reply, thinking=thinking)
        assert make is not None
        parts = parsed(make(), text)
        assert [call.name for call in parts.tool_calls] == ["weather-now"]
        assert parts.reasoning.startswith("Hm.") == ("</think>" in text)
    unthought = of.grammar(Reply(tools=reply.tools, think=False), thinking=False)
    assert unthought is not None
    one = LLMatcher(vocabulary(True), unthought.text, log_level=0)
    assert one.try_consume_tokens([tokens(True).token_to_id("<think>")]) == 0


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("a <tool_call> of JSON", "hermes"),
        ("<tool_call>\n<function=…", "qwen3_coder"),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS]", "mistral"),
        ("nothing of the kind", "none"),
    ],
)
def test_a_template_shows_its_format(template: str, name: str) -> None:
    assert format_of(template) == name


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "string", "pattern": "a"}, ".properties.x.pattern"),
        (
            {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 3}]},
            ".properties.x.maxLength",
        ),
        ({"$ref": "#/$defs/t"}, ".properties.x.minLength"),
        ({"type": "string", "description": "Any."}, None),
        ({"type": "integer", "minimum": 3}, None),
        ({"enum": ["a", "b"]}, None),
    ],
    ids=str,
)
def test_what_plain_texts_are_not_held_to_is_told(schema: Any, place: str | None) -> None:
    shared = {"t": {"type": "string", "minLength": 1}}
    whole = {"type": "object", "properties": {"x": schema}, "$defs": shared}
    tool = Tool("f", json.dumps({**whole, "additionalProperties": False}))
    assert Qwen3Coder().unheld(tool) == place
    assert Pythonic().unheld(tool) is None
