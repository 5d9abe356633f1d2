"""The body of `POST /v1/messages`."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field, WithJsonSchema

from appliance.api.fields.named import NamedFields
from appliance.api.fields.whole import Whole
from appliance.api.messages.schema import CHOICE, MESSAGES, SYSTEM, THINKING, TOOLS

# What would change the answer and is not built, with what asks for nothing.
UNBUILT_MESSAGES: Final[dict[str, tuple[Any, ...]]] = {
    "container": (),
    "context_management": ({},),
    "mcp_servers": ([],),
}


class CountRequest(NamedFields):
    """A conversation whose tokens are to be counted."""

    messages: Annotated[list[dict[str, Any]], WithJsonSchema(MESSAGES)]
    system: Annotated[Any, WithJsonSchema(SYSTEM)] = None
    tools: Annotated[list[dict[str, Any]], WithJsonSchema(TOOLS)] = Field(default_factory=list)
    tool_choice: Annotated[dict[str, Any] | None, WithJsonSchema(CHOICE)] = None
    thinking: Annotated[dict[str, Any] | None, WithJsonSchema(THINKING)] = None
    output_config: dict[str, Any] | None = None


class MessagesRequest(CountRequest):
    """A conversation to continue, as Anthropic's clients say it."""

    max_tokens: Whole = Field(ge=1)
    stop_sequences: list[str] = Field(default_factory=list)
    stream: bool = False
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: Annotated[Whole, Field(ge=0)] | None = None
