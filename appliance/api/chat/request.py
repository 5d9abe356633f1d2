"""The body of `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema

from appliance.api.chat.media_options import read_media_options
from appliance.api.chat.message_schema import messages_schema
from appliance.api.chat.messages import read_messages
from appliance.api.chat.thinking import Off
from appliance.api.fields.sampling import SamplingFields
from appliance.api.fields.whole import Whole
from appliance.config.schema import MediaConfig
from appliance.errors import bad_request
from appliance.generation.answers import AnswerLength
from appliance.generation.conversation import ChatPrompt, Conversation


def _messages(value: Any, info: ValidationInfo) -> Conversation:
    return read_messages(value, info.context if isinstance(info.context, list) else [])


class ChatRequest(SamplingFields):
    """A conversation to continue, and how."""

    messages: Annotated[Conversation, PlainValidator(_messages), WithJsonSchema(messages_schema())]
    max_tokens: Whole | None = Field(default=None, ge=1)
    max_completion_tokens: Whole | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: Whole | None = Field(default=None, ge=0, le=20)
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    media_io_kwargs: dict[str, Any] = Field(default_factory=dict)
    reasoning_effort: Off = False
    reasoning: Off = False
    thinking: Off = False

    @property
    def answer_length(self) -> AnswerLength:
        if self.max_completion_tokens is None:
            return AnswerLength(self.max_tokens, "max_tokens")
        return AnswerLength(self.max_completion_tokens, "max_completion_tokens")

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def prompt(self, owner: bytes, media: MediaConfig) -> ChatPrompt:
        """How the prompt is to be made. Raises ApplianceError for media options not allowed."""
        generate = self.add_generation_prompt
        return ChatPrompt(
            self.messages,
            add_generation_prompt=not self.continue_final_message if generate is None else generate,
            continue_final_message=self.continue_final_message,
            template=self.chat_template or None,
            template_kwargs=self.chat_template_kwargs,
            owner=owner,
            media_options=read_media_options(self.media_io_kwargs, media),
            think=not (self.reasoning_effort or self.reasoning or self.thinking),
        )

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise bad_request("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
        if (
            self.max_tokens is not None
            and self.max_completion_tokens is not None
            and self.max_tokens != self.max_completion_tokens
        ):
            raise bad_request(
                "'max_tokens' and 'max_completion_tokens' contradict each other; send one.",
                "max_tokens",
            )
        if self.continue_final_message and self.messages.messages[-1]["role"] != "assistant":
            raise bad_request(
                "'continue_final_message' needs the last message to be the assistant's.",
                "continue_final_message",
            )
