"""The body of `POST /v1/responses`."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field, WithJsonSchema

from appliance.api.fields.named import NamedFields
from appliance.api.fields.whole import Whole
from appliance.api.responses.schema import CHOICE, INPUT, TOOLS

# What would change the answer and is not built, with what asks for nothing.
UNBUILT_RESPONSES: Final[dict[str, tuple[Any, ...]]] = {
    "background": (False,),
    "context_management": ([],),
    "conversation": ("",),
    "moderation": ({},),
    "prompt": (),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}


class ResponsesRequest(NamedFields):
    """Items to respond to."""

    input: Annotated[Any, WithJsonSchema(INPUT)]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Whole | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    tools: Annotated[list[dict[str, Any]], WithJsonSchema(TOOLS)] = Field(default_factory=list)
    tool_choice: Annotated[Any, WithJsonSchema(CHOICE)] = None
    parallel_tool_calls: bool = True
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] = Field(default_factory=list)
    stream: bool = False
    stream_options: dict[str, Any] | None = None  # how events are padded: these are not
    max_tool_calls: Whole | None = Field(default=None, ge=1)  # of tools that a server runs: none
