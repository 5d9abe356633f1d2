"""The chat template: a conversation becomes one text, media and words in the order sent."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jinja2 import Template
from jinja2.exceptions import TemplateSyntaxError

from appliance.errors import ApplianceError, bad_request, context_length_exceeded
from appliance.prompt.bounds import BRIEF, FULL, OF_REQUEST, PROBE, Bounds, Overrun
from appliance.prompt.environment import ChatEnvironment, TemplateRefusal
from appliance.prompt.sentinels import Literals, Marks, Rendered, guard
from appliance.prompt.tokenizer import Tokenizer
from engine.models.documents import optional_document, read_text
from engine.models.family import Family

Message = dict[str, Any]
Shape = Literal["parts", "string", "one_part"]

WORDS = ("al\npha", "bra\nvo", "char\nlie")  # a list written as Python or JSON would escape these
TOO_MUCH = "The chat template takes more time or memory for this conversation than it may."
UNREADABLE = "The model's chat template cannot render this conversation."


class TemplateTakesTooMuch(ValueError):
    """A template that goes beyond its bounds whatever it is given."""


class Postponed(Exception):
    """Rendering would take longer than may be waited for here."""


class ChatTemplate:
    """A Jinja chat template, with what it can take found out by trying it.

    A template that keeps the order of text and media gets the parts themselves. For one that does
    not, each message is joined to one text beforehand, an item being `family.item_text`. `source`
    None takes the checkpoint's own template. Raises ValueError if the source is no Jinja template,
    or one that does not end within its bounds.
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
        self._shape = self._find_shape()
        self._takes_strings = self._shape == "string" or self._shows([WORDS[0]], "string")

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

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Any] | None = None,
        brief: bool = False,
    ) -> Rendered:
        """The conversation as text; the type of a media part is its modality.

        `continue_final_message` ends the text inside the last message. Raises ApplianceError for
        template options that the recipe does not list, and for a conversation that the template
        refuses, cannot render, or does not render within its bounds; Postponed where `brief` asks
        for what does not hold up an event loop, and the template takes longer.
        """
        marks = Marks()
        self.check_kwargs(kwargs or {})
        options = guard(dict(kwargs or {}), self._literals, marks)
        shaped = [self._message(message, self._shape, marks) for message in messages]
        if continue_final_message:
            shaped[-1]["content"] = _with_end(shaped[-1].get("content"), marks)
        text = self._run(shaped, options, add_generation_prompt, BRIEF if brief else FULL)
        if continue_final_message:
            text = _cut_at_end(text, marks)
        rendered = marks.resolve(text)
        if rendered is None:
            raise bad_request(UNREADABLE, "messages", "chat_template_failed")
        return rendered

    def check_kwargs(self, kwargs: Mapping[str, Any]) -> None:
        """Raise ApplianceError 400 for a template option that the recipe does not list."""
        for name in kwargs:
            if name not in self.template_kwargs:
                listed = ", ".join(self.template_kwargs) or "none"
                raise bad_request(
                    f"The template option '{name[:100]}' may not be set here; these may: {listed}.",
                    f"chat_template_kwargs.{name[:100]}",
                    "unsupported_parameter",
                )

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
            **options,
            "messages": messages,
            "tools": None,
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
                    f"The rendered conversation has more than {bounds.characters} characters.",
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

    def _message(self, message: Message, shape: Shape, marks: Marks) -> Message:
        assistant = message.get("role") == "assistant"
        literals = self._assistant_literals if assistant else self._literals
        shaped = {
            name: value if name == "role" else guard(value, literals, marks)
            for name, value in message.items()
            if name != "content" and value is not None
        }
        content = message.get("content")
        if content is None:
            return shaped
        if isinstance(content, str):
            text = literals.replace(content, marks)
            shaped["content"] = text if self._takes_strings else [_text_part(text)]
        elif shape == "parts":
            shaped["content"] = [self._part(part, literals, marks) for part in content]
        else:
            text = self._joined(content, literals, marks)
            shaped["content"] = text if shape == "string" else [_text_part(text)]
        return shaped

    def _part(self, part: Mapping[str, Any], literals: Literals, marks: Marks) -> dict[str, str]:
        if part["type"] == "text":
            return _text_part(literals.replace(part["text"], marks))
        return {"type": part["type"]}

    def _joined(self, parts: Sequence[Mapping[str, Any]], literals: Literals, marks: Marks) -> str:
        """Parts as one text: neighbouring texts on lines of their own, media where they stand."""
        text = ""
        after_text = False
        for part in parts:
            is_text = part["type"] == "text"
            if is_text:
                text += "\n" if after_text else ""
                text += literals.replace(part["text"], marks)
            else:
                text += marks.trusted(self.family.item_text(part["type"]))
            after_text = is_text
        return text

    def _find_shape(self) -> Shape:
        probe: list[str | None] = list(WORDS[:1])
        for word in WORDS[1:]:
            probe += [*([None] if self.family.modalities else []), word]
        shapes: tuple[Shape, ...] = ("parts", "string", "one_part")
        return next((shape for shape in shapes if self._shows(probe, shape)), "string")

    def _shows(self, probe: Sequence[str | None], shape: Shape) -> bool:
        """Whether the template writes these words, and a marker for each None, in order."""
        modality = self.family.modalities[0] if None in probe else ""
        parts = [{"type": modality} if word is None else _text_part(word) for word in probe]
        marks = Marks()
        content: Any = parts
        if shape != "parts":
            content = self._joined(parts, self._literals, marks)
            content = content if shape == "string" else [_text_part(content)]
        try:
            text = self._run([{"role": "user", "content": content}], {}, True, PROBE)
        except ApplianceError as refused:
            if refused.code in ("chat_template_bounds", "context_length_exceeded"):
                raise TemplateTakesTooMuch(
                    "the chat template takes more time or memory than it may, for a single message"
                ) from None
            return False
        rendered = marks.resolve(text)
        if rendered is None:
            return False
        marker = self.family.marker(modality) if modality else None
        return _in_order(rendered.text, probe, marker)


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


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _with_end(content: Any, marks: Marks) -> Any:
    """The content with the end mark after its last text; its space shows if it gets trimmed."""
    mark = marks.end + " "
    if isinstance(content, str):
        return content + mark
    for place in range(len(content or []) - 1, -1, -1):
        if content[place]["type"] == "text":
            ended = list(content)
            ended[place] = _text_part(content[place]["text"] + mark)
            return ended
    raise bad_request(
        "'continue_final_message' needs a last message with text.",
        "continue_final_message",
        "invalid_value",
    )


def _cut_at_end(text: str, marks: Marks) -> str:
    place = text.rfind(marks.end)
    if place < 0:
        raise bad_request(
            "The model's chat template changes the last message; it cannot be continued.",
            "continue_final_message",
            "chat_template_failed",
        )
    kept = text[place + len(marks.end) :].startswith(" ")
    text = text[:place].replace(marks.end, "")
    return text if kept else text.rstrip()


def _in_order(text: str, probe: Sequence[str | None], marker: str | None) -> bool:
    position = 0
    for word in probe:
        wanted = marker if word is None else word
        found = text.find(wanted or "", position)
        if found < 0 or (wanted is not None and text.count(wanted) != probe.count(word)):
            return False
        position = found + len(wanted or "")
    return True
