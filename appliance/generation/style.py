"""How a model writes calls of tools and thoughts, and how it is held to that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

from appliance.errors import bad_request
from appliance.generation.calls.format import CallFormat
from appliance.generation.calls.tool import Tool, ToolUse
from appliance.generation.parts import AnswerParser
from appliance.generation.rules import STRUCTURE, Rules
from appliance.generation.thoughts import Reasoning, ThoughtParser
from engine.sampling.constraint import ConstraintSource
from engine.sampling.grammar import Grammar, fault
from engine.sampling.thought_budget import ThoughtBudget

REMEMBERED = 64  # grammars of requests with tools, which agents send again and again


@dataclass(slots=True, frozen=True)
class Reply:
    """What a request says that its answers may be.

    `structure` is what their text is held to, if anything, and `thought_tokens` how many a thought
    may have. Without `think` the prompt has told the model not to; without `show_thought` nobody is
    to read it.
    """

    structure: Grammar | None = None
    tools: ToolUse | None = None
    think: bool = True
    show_thought: bool = True
    thought_tokens: int | None = None


@dataclass(frozen=True, eq=False)
class Style:
    """One model's; of its tokenizer's `added` tokens the `special` ones are never text."""

    added: Mapping[str, int] = field(default_factory=dict)
    special: Mapping[str, int] = field(default_factory=dict)
    calls: CallFormat | None = None
    reasoning: Reasoning | None = None
    calls_name: str = "none"  # the format's

    @property
    def in_words(self) -> str:
        """What answers may hold besides text."""
        parts = [f"calls of tools as {self.calls_name}"] if self.calls is not None else []
        if self.reasoning is not None:
            parts.append(f"thoughts between {self.reasoning.start} and {self.reasoning.end}")
        return ", ".join(["text", *parts])

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that are parsed, and not shown."""
        calls = () if self.calls is None else self.calls.marks
        thoughts = () if self.reasoning is None else (self.reasoning.start, self.reasoning.end)
        return (*calls, *thoughts)

    @property
    def mark_ids(self) -> frozenset[int]:
        """Tokens that parsers have to see, special or not."""
        return frozenset(self.added[mark] for mark in self.marks if mark in self.added)

    def thinks(self, prompt: str) -> bool:
        """Whether a prompt ends inside a thought."""
        return self.reasoning is not None and prompt.rstrip().endswith(self.reasoning.start)

    def constraint(self, reply: Reply, *, thinking: bool) -> ConstraintSource | None:
        """What an answer is held to, behind a prompt that ends inside a thought or does not.

        None where it may be anything. Raises ApplianceError 400 for tools that are too much, and
        for a bound on thoughts where there is no telling when one ends.
        """
        grammar = self.grammar(reply, thinking=thinking)
        if reply.thought_tokens is None:
            return grammar
        marks = () if self.reasoning is None else (self.reasoning.start, self.reasoning.end)
        if not marks or not all(mark in self.added for mark in marks):
            raise bad_request(
                "A thought's length cannot be bounded here: the model has no tokens for the marks "
                "around it, or its recipe does not name them ('chat.reasoning').",
                "thinking_token_budget",
                "unsupported_parameter",
            )
        begin, end = (self.added[mark] for mark in marks)
        return ThoughtBudget(reply.thought_tokens, begin, end, thinking, grammar)

    def grammar(self, reply: Reply, *, thinking: bool) -> Grammar | None:
        """The grammar of it."""
        if reply.tools is None and (reply.structure is None or self.reasoning is None):
            return reply.structure
        return _grammar(self, replace(reply, thought_tokens=None), thinking)

    def parser(self, reply: Reply, *, thinking: bool) -> Callable[[], AnswerParser] | None:
        """What makes a parser for each answer; None where all of it is text."""
        calls = None
        if reply.tools is not None and self.calls is not None:
            calls = partial(self.calls.parser, reply.tools.tools)
        if self.reasoning is None:
            return calls
        return partial(self._thoughts, calls, thinking, reply.show_thought)

    def rules(self) -> Rules:
        """To write grammars with."""
        return Rules(self.added, self.special, self.marks)

    def fault(self, tool: Tool) -> str | None:
        """Why calls of a tool cannot be held to its schema, in the grammar engine's words."""
        assert self.calls is not None
        rules = self.rules()
        return fault(rules.grammar(self.calls.calls(rules, [tool], parallel=False)).text)

    def _thoughts(
        self, calls: Callable[[], AnswerParser] | None, begun: bool, shown: bool
    ) -> AnswerParser:
        assert self.reasoning is not None
        behind = None if calls is None else calls()
        return ThoughtParser(self.reasoning, behind, begun=begun, shown=shown)


@lru_cache(REMEMBERED)
def _grammar(style: Style, reply: Reply, thinking: bool) -> Grammar:
    rules, parts = style.rules(), []
    if style.reasoning is not None and (thinking or reply.think):
        parts.append(style.reasoning.thought(rules, begun=thinking))
    structure, tools = reply.structure, reply.tools
    if tools is None or style.calls is None:
        parts.append(f"@{STRUCTURE}")
    elif tools.required:
        parts.append(style.calls.calls(rules, tools.tools, parallel=tools.parallel))
        structure = None
    elif structure is not None:
        # text before a call would have to be the structure, of which nothing comes behind
        calls = style.calls.calls(rules, tools.tools, parallel=tools.parallel)
        parts.append(f"({calls} | @{STRUCTURE})")
    else:
        parts.append(style.calls.amid_text(rules, tools.tools, parallel=tools.parallel))
    grammar = rules.grammar(" ".join(parts), structure)
    if reason := fault(grammar.text):
        raise bad_request(
            "What the answer is held to, tools and form and thought together, cannot be followed: "
            f"{reason.splitlines()[0][:200]}.",
            None if tools is None else "tools",
            "invalid_value",
        )
    return grammar
