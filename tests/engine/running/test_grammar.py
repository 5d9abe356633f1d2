"""Answers held to grammars, of a model that knows nothing: whatever comes out must fit."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher
from tokenizers import Tokenizer

from appliance.generation.structure import Structure, grammar_of
from bench.reference import Recorder, engine_options, greedy
from bench.stand_in.platforms import PATHS, engine_on
from engine.core import Engine
from engine.errors import RequestRefused
from engine.request import Request, SamplingOptions
from engine.sampling import grammar as module
from engine.sampling.grammar import Grammar, Grammars, fault
from tests.engine.running.forms import GBNF, LARK, REGEXES, is_of_lark, is_of_regex
from tests.engine.running.test_oracle import words

Folder = Callable[[str], Path]

SCHEMAS: list[dict[str, Any]] = [
    {"type": "boolean"},
    {"type": "integer", "minimum": -5, "maximum": 300},
    {"enum": ["a", 1, None, {"x": [True]}]},
    {"const": {"kind": "only"}},
    {"type": "string", "maxLength": 5},
    {"type": "string", "pattern": "^[A-Z]{2}[0-9]$"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4},
    {"type": "array", "prefixItems": [{"const": 1}, {"enum": ["x", "y"]}], "items": False},
    {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 7, "maximum": 9}]},
    {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}, "b": {"enum": ["u"]}},
        "required": ["b"],
        "additionalProperties": False,
    },
    {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "v": {"enum": [0, 1]},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
                },
                "required": ["v", "next"],
                "additionalProperties": False,
            }
        },
    },
]


def of_regex(pattern: str) -> Grammar:
    return grammar_of(Structure("regex", pattern, ""))


def of_rules(rules: str) -> Grammar:
    return grammar_of(Structure("grammar", rules, ""))


def of_schema(schema: dict[str, Any]) -> Grammar:
    return Grammar(
        LLMatcher.grammar_from_json_schema(
            json.dumps(schema), overrides={"whitespace_pattern": " ?"}
        )
    )


def drawn(seed: int, most: int = 120) -> SamplingOptions:
    return SamplingOptions(most, temperature=1.0, seed=seed)


class Answering(Recorder):
    """Answers as text, of those that came to their end."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        super().__init__(engine)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def text(self, name: str, index: int = 0) -> str:
        return str(self._tokenizer.decode(self.tokens[name, index], skip_special_tokens=True))

    def ended(self) -> set[tuple[str, int]]:
        return {(o.request_id, o.index) for o in self.outputs if o.finish_reason == "stop"}


def bound_requests() -> list[Request]:
    """Each of another form."""
    grammars = [*map(of_regex, REGEXES), *map(of_schema, SCHEMAS)]
    grammars += [*map(of_rules, LARK), *(of_rules(rules) for rules, _ in GBNF)]
    kinds = {"regex": REGEXES, "schema": SCHEMAS, "lark": LARK, "gbnf": GBNF}
    names = [f"{kind} {n}" for kind, forms in kinds.items() for n in range(len(forms))]
    return [
        Request(name, words(9, seed), drawn(seed), n=2, constraint=grammar)
        for seed, (name, grammar) in enumerate(zip(names, grammars, strict=True))
    ]


def fits(name: str, text: str) -> bool:
    kind, number = name.split()
    place = int(number)
    try:
        match kind:
            case "regex":
                return is_of_regex(REGEXES[place], text)
            case "lark":
                return is_of_lark(LARK[place], text)
            case "gbnf":
                return GBNF[place][1](text)
        jsonschema.validate(json.loads(text), SCHEMAS[place])
    except (ValueError, SyntaxError, jsonschema.ValidationError):
        return False
    return True


@pytest.mark.parametrize("path", PATHS)
def test_whatever_a_model_that_knows_nothing_says_fits(checkpoint: Folder, path: str) -> None:
    folder = checkpoint("llama")
    each = Answering(engine_on(path, folder, max_sequences=40, pages=400), folder)
    free, bound = Request("free", words(12, 3), greedy(12)), bound_requests()
    each.run(free)
    alone = each.tokens.pop(("free", 0))
    each.run(free, *bound)
    assert each.tokens.pop(("free", 0)) == alone
    ended = each.ended()
    assert len(ended) > len(each.tokens) * 3 / 4  # the length cuts off what may go on for ever
    assert [
        (name, text)
        for name, index in sorted(ended)
        if not fits(name, text := each.text(name, index))
    ] == []
    assert each.engine.stats().pages_used == 0


def test_nothing_of_it_comes_by_itself(checkpoint: Folder) -> None:
    """Control."""
    folder = checkpoint("llama")
    each = Answering(Engine(engine_options(folder)), folder)
    each.run(*(replace(request, constraint=None) for request in bound_requests()))
    assert not any(fits(name, each.text(name, index)) for name, index in each.tokens)


def test_an_answer_ends_when_its_grammar_does(checkpoint: Folder) -> None:
    """Whatever else would have it go on: then no token could come."""
    folder = checkpoint("llama")
    each = Answering(Engine(engine_options(folder)), folder)
    on = SamplingOptions(60, temperature=0.0, ignore_eos=True, min_tokens=50)
    each.run(Request("r", words(9, 1), on, constraint=of_regex("[ab]{3}")))
    assert re.fullmatch("[ab]{3}", each.text("r"))
    assert each.outputs[-1].finish_reason == "stop"


def test_drafts_are_held_to_it_too(checkpoint: Folder) -> None:
    folder = checkpoint("llama")
    plain, drafting = (
        Answering(Engine(engine_options(folder, **more)), folder)
        for more in ({}, {"speculation": "ngram", "speculation_tokens": 4})
    )
    again = of_schema({"type": "array", "items": {"enum": ["ab", "ab"]}, "minItems": 20})
    for each in (plain, drafting):
        each.run(Request("r", words(9, 1), drawn(3, 200), constraint=again))
    assert plain.tokens == drafting.tokens
    assert drafting.engine.stats().accepted_tokens > 0


def test_nobody_waits_while_a_grammar_is_compiled(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, go_on = checkpoint("llama"), threading.Event()
    compiling = Grammars._compile

    def held(self: Grammars, text: str) -> Any:
        assert go_on.wait(60)
        return compiling(self, text)

    monkeypatch.setattr(Grammars, "_compile", held)
    each = Answering(Engine(engine_options(folder)), folder)
    each.engine.add(Request("bound", words(9, 1), drawn(1), constraint=of_regex("[ab]{3}")))
    each.engine.add(Request("free", words(9, 2), greedy(20)))
    while ("free", 0) not in each.tokens or len(each.tokens["free", 0]) < 20:
        each.step()
    assert ("bound", 0) not in each.tokens
    go_on.set()
    each.finish()
    assert re.fullmatch("[ab]{3}", each.text("bound"))


def test_one_grammar_is_compiled_once_and_few_are_kept(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_KEPT", 2)
    grammars = Grammars(str(checkpoint("llama")), 640, [622])
    first = grammars.start(of_regex("a").text)
    assert grammars.start(of_regex("a").text)._compiled is first._compiled
    for pattern in "bcd":
        grammars.start(of_regex(pattern).text)
    assert len(grammars._kept) == 2
    assert grammars._bytes == len(of_regex("c").text) + len(of_regex("d").text)
    assert grammars.start(of_regex("a").text)._compiled is not first._compiled


def test_one_that_gets_too_complex_ends_its_own_request(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llguidance import LLParserLimits

    folder = checkpoint("llama")
    monkeypatch.setattr(module, "limits", lambda: LLParserLimits(step_lexer_fuel=40))
    each = Answering(Engine(engine_options(folder)), folder)
    free = Request("free", words(9, 2), greedy(20))
    each.run(Request("bound", words(9, 1), drawn(1), constraint=of_regex("(ab?c?){9,99}")), free)
    last = {output.request_id: output for output in each.outputs}
    assert last["bound"].finish_reason == "error"
    assert "grammar" in (last["bound"].error or "")
    assert last["free"].finish_reason == "length"
    assert each.engine.stats().pages_used == 0


def test_a_model_without_an_end_is_refused(checkpoint: Folder) -> None:
    with pytest.raises(RequestRefused, match="without an end token"):
        Grammars(str(checkpoint("llama")), 640, []).start(of_regex("a").text)


def test_faults_are_found_without_a_model() -> None:
    assert fault(of_regex("a+").text) is None
    assert "unclosed" in (fault(LLMatcher.grammar_from_regex("(a")) or "")
