"""A model's style of answers as its recipe and its chat template say it."""

from __future__ import annotations

from appliance.config.schema import ChatConfig, ReasoningConfig
from appliance.generation.calls.formats import AUTO, FORMATS, NONE, format_of
from appliance.generation.style import Style
from appliance.generation.thoughts import Reasoning
from appliance.prompt.template import ChatTemplate

THINK, END = "<think>", "</think>"  # what nearly all templates have


def style_for(chat: ChatConfig, template: ChatTemplate) -> Style:
    """Raises ValueError for what the recipe says and the template does not bear out."""
    source, tokenizer = template.source or "", template.tokenizer
    name = chat.tool_format
    if name == AUTO:
        name = format_of(source) if template.takes_tools else NONE
    elif name != NONE and not template.takes_tools:
        raise ValueError(
            f"the chat template tells a model of no tools, so chat.tool_format={name} is in vain"
        )
    calls = None if name == NONE else FORMATS[name](tokenizer.added)
    reasoning = _reasoning(chat.reasoning, source)
    return Style(tokenizer.added, tokenizer.special, calls, reasoning, name)


def _reasoning(config: ReasoningConfig, source: str) -> Reasoning | None:
    written = THINK in source and END in source
    start = (THINK if written else None) if config.start == AUTO else config.start
    end = (END if start is not None else None) if config.end == AUTO else config.end
    if not start and not end:
        return None
    if not start or not end:
        missing = "end" if start else "start"
        raise ValueError(f"chat.reasoning.{missing} is missing: a thought has two marks")
    return Reasoning(start, end)
