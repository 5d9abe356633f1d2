"""A conversation to continue, free of the protocol that it came by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.errors import bad_request
from appliance.media.source import Source
from appliance.prompt.thinking import UNSAID, Thinking

Message = dict[str, Any]  # role, content (text, or parts), and further fields as sent


@dataclass(slots=True, frozen=True)
class Conversation:
    """Messages for the template, and the media that their parts stand for, in order.

    A part is `{"type": "text", "text": …}`, or `{"type": modality}` for the next of `sources`.
    """

    messages: list[Message]
    sources: list[Source] = field(default_factory=list)
    text_length: int = 0  # characters
    certain_length: int = 0  # of them, what any template writes: they drop thoughts, and trim
    parts: int = 0  # of all messages together


@dataclass(slots=True, frozen=True)
class ChatPrompt:
    """How a conversation becomes a prompt.

    `template` replaces the model's own. `tools` are OpenAI's definitions, `tools_length` their
    characters. `owner` is whose media uuids are meant; `media_options` are by modality. Raises
    ApplianceError for what contradicts itself.
    """

    conversation: Conversation
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    owner: bytes = b""
    media_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    thinking: Thinking = UNSAID
    tools: Sequence[Mapping[str, Any]] = ()
    tools_length: int = 0

    def __post_init__(self) -> None:
        if self.add_generation_prompt and self.continue_final_message:
            raise bad_request(
                "'continue_final_message' and 'add_generation_prompt' exclude each other.",
                "continue_final_message",
            )
