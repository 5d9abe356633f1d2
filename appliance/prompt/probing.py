"""Finding out what a chat template takes, by trying it before anybody is served by it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.errors import ApplianceError
from appliance.prompt.content import Part, Shape, merged, spelled, text_part
from appliance.prompt.sentinels import Marks, Rendered
from engine.models.family import Family

Message = dict[str, Any]

SHAPES: tuple[Shape, ...] = ("parts", "string", "one_part")
# a list written as Python or JSON would escape the ends of lines
WORDS = ("al\npha", "bra\nvo", "char\nlie", "del\nta", "ec\nho")
LINES = "\n"  # between texts where the template has nothing of its own
SECONDS = 1.0  # of the thread's own time, for all that is tried
ASKED, SAID = {"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Yes."}
TAKES_TOO_MUCH = ("chat_template_bounds", "context_length_exceeded")


class TemplateTakesTooMuch(ValueError):
    """A template that goes beyond its bounds whatever it is given."""


@dataclass(slots=True, frozen=True)
class Way:
    """How the content of a role's messages is given to the template."""

    strings: bool = True  # a text alone as a text, or else as one part
    shape: Shape = "string"  # of several parts
    joint: str = LINES  # between neighbouring texts


@dataclass(slots=True, frozen=True)
class Place:
    """Where in a conversation a message may stand."""

    words: str
    role: str
    before: tuple[Message, ...] = ()
    after: tuple[Message, ...] = ()
    fields: tuple[tuple[str, str], ...] = ()  # of the message, beside its content


PLACES = {
    "user": Place("a user's message", "user"),
    "system": Place("the system message", "system", after=(ASKED,)),
    "assistant": Place("an assistant's message", "assistant", (ASKED,), (ASKED,)),
}
EARLIER = Place("an earlier message of the user", "user", after=(SAID, ASKED))
CALL_ID = "abcdefghi"
CALL_WORDS = ("alphabravo", "charlie", "delta")
CALL = {"name": CALL_WORDS[0], "arguments": {CALL_WORDS[1]: CALL_WORDS[2]}}
CALLING = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": CALL_ID, "type": "function", "function": CALL}],
}
TOOL = Place(
    "the answer of a tool",
    "tool",
    (ASKED, CALLING),
    fields=(("tool_call_id", CALL_ID), ("name", CALL_WORDS[0])),
)
SYSTEM = {"role": "system", "content": "Be brief."}
SECOND_SYSTEM = Place("a second system message", "system", (SYSTEM,), (ASKED,))
LATE_SYSTEM = Place("a later system message", "system", (ASKED, SAID), (ASKED,))


class Probes:
    """Conversations that a template is tried with; `run` renders one, or raises ApplianceError."""

    def __init__(self, run: Callable[[list[Message]], str], family: Family) -> None:
        self._run = run
        self._family = family
        self._seconds = SECONDS

    def way(self, place: Place) -> Way:
        """The first way in which all that a message there holds is written, in order."""
        word = text_part(WORDS[0])
        strings = self._shows(place, [word], "string") or not self._shows(place, [word], "one_part")
        shape: Shape = "string"
        if self._family.modalities:
            mixed = list(self._mixed())
            shape = next((one for one in SHAPES if self._shows(place, mixed, one)), "string")
        return Way(strings, shape, self._joint(place))

    def loses(self, place: Place, parts: Sequence[Part], way: Way) -> bool:
        """Whether the template renders such a message and leaves out part of it.

        What it refuses, or cannot render, is told to whoever sends it.
        """
        shape = way.shape
        if all(part["type"] == "text" for part in parts):
            shape = "string" if way.strings else "one_part"
        rendered = self._rendered(place, parts, shape)
        if rendered is None:
            return False
        text = rendered.text.casefold()
        wanted = Counter(self._wanted(part).casefold() for part in parts)
        return any(text.count(one) < count for one, count in wanted.items())

    def loses_calls(self) -> bool:
        """Whether calls of tools that an assistant's message holds are left out."""
        rendered = self._rendered(TOOL, [text_part("echo")], "string")
        return rendered is not None and not all(word in rendered.text for word in CALL_WORDS)

    def opens_thought(self) -> bool:
        """Whether an answer begins inside a thought, whatever the template is told."""
        rendered = self._rendered(PLACES["user"], [text_part("Well?")], "string")
        return rendered is not None and rendered.text.rstrip().endswith("<think>")

    def items(self) -> Iterator[tuple[str, list[Part]]]:
        """For each modality, parts that hold an item of it."""
        for modality in self._family.modalities:
            yield modality, [text_part("alphabravo"), {"type": modality}, text_part("charlie")]

    def _mixed(self) -> Iterator[Part]:
        modalities = self._family.modalities
        items = [*modalities, *modalities][: max(2, len(modalities))]
        for word, modality in zip(WORDS, items, strict=False):
            yield text_part(word)
            yield {"type": modality}
        yield text_part(WORDS[-1])

    def _joint(self, place: Place) -> str:
        """What the template itself puts between two texts, if that is white space or nothing."""
        rendered = self._rendered(place, list(map(text_part, WORDS[:2])), "parts")
        if rendered is None:
            return LINES
        _, first, rest = rendered.text.partition(WORDS[0])
        between, second, _ = rest.partition(WORDS[1])
        return between if first and second and not between.strip() else LINES

    def _shows(self, place: Place, parts: Sequence[Part], shape: Shape) -> bool:
        """Whether the template writes these words and a marker for each item, in order."""
        rendered = self._rendered(place, parts, shape)
        if rendered is None:
            return False
        position, wanted = 0, list(map(self._wanted, parts))
        for one in wanted:
            found = rendered.text.find(one, position)
            if found < 0 or rendered.text.count(one) != wanted.count(one):
                return False
            position = found + len(one)
        return True

    def _wanted(self, part: Part) -> str:
        return str(part["text"]) if part["type"] == "text" else self._family.marker(part["type"])

    def _rendered(self, place: Place, parts: Sequence[Part], shape: Shape) -> Rendered | None:
        """None where the template fails or refuses. Raises TemplateTakesTooMuch."""
        marks = Marks()
        content: Any = list(parts)
        if shape != "parts":
            content = spelled(merged(parts, LINES), self._family, marks)
            content = content if shape == "string" else [text_part(content)]
        message = {"role": place.role, "content": content, **dict(place.fields)}
        begun = time.thread_time()
        try:
            text = self._run([*place.before, message, *place.after])
        except ApplianceError as refused:
            if refused.code in TAKES_TOO_MUCH:
                raise TemplateTakesTooMuch(
                    "the chat template takes more time or memory than it may, for a single message"
                ) from None
            return None
        finally:
            self._seconds -= time.thread_time() - begun
        if self._seconds < 0:
            raise TemplateTakesTooMuch("the chat template takes more time than it may, to be tried")
        return marks.resolve(text)
