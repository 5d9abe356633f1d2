"""The chat template: a conversation becomes one text, media and words in the order sent."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.exceptions import TemplateSyntaxError

from appliance.errors import ApplianceError, bad_request, context_length_exceeded
from appliance.prompt.bounds import BRIEF, FULL, OF_REQUEST, PROBE, Bounds, Overrun
from appliance.prompt.content import Part, merged, spelled, text_part
from appliance.prompt.continuation import cut_at_end, with_end
from appliance.prompt.environment import ChatEnvironment, TemplateRefusal
from appliance.prompt.probing import (
    EARLIER,
    LATE_SYSTEM,
    PLACES,
    SECOND_SYSTEM,
    TOOL,
    Message,
    Probes,
    TemplateTakesTooMuch,
)
from appliance.prompt.sentinels import Literals, Marks, Rendered, guard
from appliance.prompt.thinking import UNSAID, Thinking
from appliance.prompt.tokenizer import Tokenizer
from engine.models.documents import optional_document, read_text
from engine.models.family import Family

WORD = "alphabravo"
SWITCHES = ("enable_thinking", "thinking")  # names by which templates are told whether to think
EFFORT, TOOLS = "reasoning_effort", "tools"
TOO_MUCH = "The chat template takes more time or memory for this conversation than it may."
UNREADABLE = "The model's chat template cannot render this conversation."


class Postponed(Exception):
    """Rendering would take longer than may be waited for here."""


class ChatTemplate:
    """A Jinja chat template, with what it can take found out by trying it.

    Neighbouring texts are one before any template sees them. A template that keeps the order of
    text and media gets the parts themselves; for one that does not, each message is joined to one
    text, an item being `family.item_text`. `source` None takes the checkpoint's own template.
    Raises ValueError if the source is no Jinja template, or does not end within its bounds.
    """

    def __init__(
        self,
        source: str | None,
        tokenizer: Tokenizer,
        family: Family,
        template_kwargs: Sequence[str] = (),
        bounds: Bounds = FULL,
    ) -> None:
        self.tokenizer = tokenizer
        self.family = family
        self.template_kwargs = tuple(template_kwargs)
        self.source = source if source is not None else checkpoint_template(tokenizer.folder)
        self._environment = ChatEnvironment()
        self._template = _compile(self.source, self._environment, bounds)
        self._literals = Literals(tokenizer.added)
        self._assistant_literals = Literals(tokenizer.special)
        self._probes = Probes(lambda messages: self._run(messages, {}, True, PROBE), family)
        self._ways = {place.role: self._probes.way(place) for place in PLACES.values()}
        named = self._environment.names(self.source or "", (*SWITCHES, TOOLS, EFFORT))
        self._switches = [name for name in SWITCHES if name in named]
        self._knows_effort = EFFORT in named
        self.takes_tools = TOOLS in named
        self._lost_calls = self._lost_tools = False
        if "tool" in (self.source or ""):
            self._ways["tool"] = way = self._probes.way(TOOL)
            self._lost_calls = self._probes.loses_calls()
            self._lost_tools = self._probes.loses(TOOL, [text_part(WORD)], way)
        self._always_thinks = "<think>" in (self.source or "") and self._probes.opens_thought()
        self._lost_systems = [
            place
            for place in (SECOND_SYSTEM, LATE_SYSTEM)
            if self._probes.loses(place, [text_part(WORD)], self._ways["system"])
        ]

    def with_source(self, source: str) -> ChatTemplate:
        """The same with a request's own template; takes as long as its bounds allow.

        Raises ApplianceError if it is no Jinja, or does not end within its bounds.
        """
        try:
            return ChatTemplate(
                source, self.tokenizer, self.family, self.template_kwargs, OF_REQUEST
            )
        except TemplateTakesTooMuch:
            raise bad_request(
                "The chat template takes more time or memory than it may.",
                "chat_template",
                "chat_template_bounds",
            ) from None
        except ValueError:
            raise bad_request(
                "The chat template is not valid Jinja.", "chat_template", "invalid_value"
            ) from None

    def check(self) -> None:
        """Raise ValueError for a template that leaves out what somebody may send.

        What it refuses by itself is no loss, since whoever sent it is told.
        """
        if self._template is None:
            return
        lost = [
            place.words
            for place in (*PLACES.values(), EARLIER)
            if self._probes.loses(place, [text_part(WORD)], self._ways[place.role])
        ]
        lost += [
            f"{modality} in a user's message"
            for modality, parts in self._probes.items()
            if self._probes.loses(PLACES["user"], parts, self._ways["user"])
        ]
        if lost:
            raise ValueError(f"the chat template leaves out {' and '.join(lost)}")

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Any] | None = None,
        thinking: Thinking = UNSAID,
        tools: Sequence[Mapping[str, Any]] = (),
        brief: bool = False,
    ) -> Rendered:
        """The conversation as text; the type of a media part is its modality.

        `tools` are OpenAI's definitions. `continue_final_message` ends the text inside the last
        message. Raises ApplianceError as `options` does, and for a conversation that the
        template refuses, would leave out part of, cannot render, or does not render within its
        bounds; Postponed where `brief` asks for what does not hold up an event loop, and the
        template takes longer.
        """
        marks = Marks()
        options = guard(self.options(kwargs or {}, thinking), self._literals, marks)
        if tools:
            options[TOOLS] = guard(list(tools), self._literals, marks)
        self._check_places(messages)
        shaped = [self._message(message, marks) for message in messages]
        if continue_final_message:
            shaped[-1]["content"] = with_end(shaped[-1].get("content"), marks)
        text = self._run(shaped, options, add_generation_prompt, BRIEF if brief else FULL)
        if continue_final_message:
            text = cut_at_end(text, marks)
        rendered = marks.resolve(text)
        if rendered is None:
            raise bad_request(UNREADABLE, "messages", "chat_template_failed")
        return rendered

    def options(self, kwargs: Mapping[str, Any], thinking: Thinking = UNSAID) -> dict[str, Any]:
        """What the template is given of a request's options.

        Raises ApplianceError 400 for one that the recipe does not list, unless it is null, or the
        template's own switch for thinking, or tells a model not to think that has no such switch;
        and where thinking cannot be switched off, or on.
        """
        given: dict[str, Any] = {}
        think = thinking.wanted
        for name, value in kwargs.items():
            if value is None:
                continue
            if name in SWITCHES and value is False and not self._switches:
                think = False
            elif name in self.template_kwargs or name in self._switches:
                given[name] = value
            else:
                listed = ", ".join(self.template_kwargs) or "none"
                raise bad_request(
                    f"The template option '{name[:100]}' may not be set here; these may: {listed}.",
                    f"chat_template_kwargs.{name[:100]}",
                    "unsupported_parameter",
                )
        if think is False and not self._switches and self._always_thinks:
            raise bad_request(
                "This model thinks before it answers, and its chat template has no switch.",
                thinking.param,
                "unsupported_parameter",
            )
        if think and not (self._switches or self._always_thinks or self._knows_effort):
            raise bad_request(
                f"'{thinking.param}': this model's chat template knows nothing of thinking.",
                thinking.param,
                "unsupported_parameter",
            )
        if self._knows_effort and thinking.effort is not None:
            given.setdefault(EFFORT, thinking.effort)
        return given if think is None else dict.fromkeys(self._switches, think) | given

    def _run(
        self,
        messages: list[Message],
        options: dict[str, Any],
        add_generation_prompt: bool,
        bounds: Bounds = FULL,
    ) -> str:
        if self._template is None:
            raise bad_request(
                "This model has no chat template; use /v1/completions.",
                "messages",
                "chat_template_missing",
            )
        variables = {
            **self.tokenizer.named_tokens,
            TOOLS: None,
            **options,
            "messages": messages,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._environment.rendered(self._template, variables, bounds)
        except Overrun as overrun:
            if bounds is BRIEF:
                raise Postponed from None
            if overrun.what == "characters":
                raise context_length_exceeded(
                    f"The conversation is longer than the model's context length: rendered it has "
                    f"more than {bounds.characters} characters.",
                    "messages",
                ) from None
            raise bad_request(TOO_MUCH, "messages", "chat_template_bounds") from None
        except TemplateRefusal as refusal:
            raise bad_request(
                f"The model's chat template refuses this conversation: {refusal.message}",
                "messages",
                "chat_template_refused",
            ) from None
        except Exception as failure:  # whatever a template does with input it was not written for
            raise bad_request(UNREADABLE, "messages", "chat_template_failed") from failure

    def _message(self, message: Message, marks: Marks) -> Message:
        role = message.get("role")
        way = self._ways.get(role or "", self._ways["user"])
        literals = self._assistant_literals if role == "assistant" else self._literals
        shaped = {
            name: value if name == "role" else guard(value, literals, marks)
            for name, value in message.items()
            if name != "content" and value is not None
        }
        content = message.get("content")
        if content is None:
            return shaped
        if isinstance(content, str):
            content = [text_part(content)]
        parts = merged(content, way.joint)
        if way.shape == "parts" and any(part["type"] != "text" for part in parts):
            shaped["content"] = [_guarded(part, literals, marks) for part in parts]
            return shaped
        text = spelled(parts, self.family, marks, lambda text: literals.replace(text, marks))
        alone = way.strings if len(parts) == 1 else way.shape == "string"
        shaped["content"] = text if alone else [text_part(text)]
        return shaped

    def _check_places(self, messages: Sequence[Message]) -> None:
        """Raise ApplianceError for a message where the template would leave it out."""
        for number, message in enumerate(messages):
            if message.get("tool_calls") and self._lost_calls:
                raise _left_out("calls of tools", f"messages[{number}].tool_calls")
            if message.get("role") == "tool" and self._lost_tools:
                raise _left_out(TOOL.words, f"messages[{number}]")
        if not self._lost_systems:
            return
        first = True  # so far there is nothing but system messages
        for number, message in enumerate(messages):
            system = message.get("role") == "system"
            place = SECOND_SYSTEM if first else LATE_SYSTEM
            if number and system and place in self._lost_systems:
                raise _left_out(place.words, f"messages[{number}]")
            first = first and system


def _left_out(words: str, path: str) -> ApplianceError:
    return bad_request(
        f"The model's chat template leaves out {words}.", path, "chat_template_refused"
    )


def checkpoint_template(folder: Path) -> str | None:
    """The template beside the weights, in a file of its own or in tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if os.path.lexists(path):
        return read_text(path)
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = optional_document(folder / name).get("chat_template")
        if isinstance(template, list):
            named = [entry for entry in template if isinstance(entry, dict)]
            chosen = [entry for entry in named if entry.get("name") == "default"]
            template = chosen[-1].get("template") if chosen else None
        if template is not None and not isinstance(template, str):
            raise ValueError(f"the chat template in {folder / name} is no text")
        if template is not None:
            return template
    return None


def _compile(source: str | None, environment: ChatEnvironment, bounds: Bounds) -> Template | None:
    if source is None:
        return None
    try:
        return environment.compiled(source, bounds)
    except TemplateSyntaxError as error:
        raise ValueError(f"the chat template is not valid Jinja (line {error.lineno})") from None
    except Overrun:
        raise TemplateTakesTooMuch("the chat template is longer than it may be") from None
    except Exception as error:  # too deep for the parser or for Python's compiler, numbers too long
        raise ValueError("the chat template is not valid Jinja") from error


def _guarded(part: Part, literals: Literals, marks: Marks) -> dict[str, str]:
    if part["type"] == "text":
        return text_part(literals.replace(part["text"], marks))
    return {"type": part["type"]}
