"""The body of `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema

from appliance.api.chat.media_options import read_media_options
from appliance.api.chat.message_schema import (
    messages_schema,
    tool_choice_schema,
    tools_schema,
)
from appliance.api.chat.messages import read_messages
from appliance.api.chat.thinking import Said, agreed
from appliance.api.chat.tools import Choice, Tools, offered
from appliance.api.fields.request import INT32
from appliance.api.fields.sampling import SamplingFields
from appliance.api.fields.whole import Whole
from appliance.config.schema import MediaConfig
from appliance.errors import bad_request
from appliance.generation.answers import AnswerLength
from appliance.generation.calls.tool import ToolUse
from appliance.generation.conversation import ChatPrompt, Conversation
from appliance.generation.style import Reply, Style
from appliance.generation.tools import usable
from appliance.prompt.thinking import UNSAID, Thinking
from engine.sampling.grammar import Grammar


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
    reasoning_effort: Said = UNSAID
    reasoning: Said = UNSAID
    thinking: Said = UNSAID
    include_reasoning: bool = True
    thinking_token_budget: Whole | None = Field(default=None, ge=0, lt=INT32)
    tools: Annotated[Tools, WithJsonSchema(tools_schema())] = Field(default_factory=list)
    tool_choice: Annotated[Choice, WithJsonSchema(tool_choice_schema())] = None
    parallel_tool_calls: bool = True

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
        tools, _ = offered(self.tools, self.tool_choice)
        return ChatPrompt(
            self.messages,
            add_generation_prompt=not self.continue_final_message if generate is None else generate,
            continue_final_message=self.continue_final_message,
            template=self.chat_template or None,
            template_kwargs=self.chat_template_kwargs,
            owner=owner,
            media_options=read_media_options(self.media_io_kwargs, media),
            thinking=self._thinking,
            tools=[tool.definition for tool in tools],
            tools_length=sum(tool.length for tool in tools),
        )

    def reply(self, grammar: Grammar | None, style: Style, ignored: list[str]) -> Reply:
        """What the answers may be; places of schemas that calls are not held to go to `ignored`.

        Raises ApplianceError for tools of which a model cannot be told, or that it cannot call.
        """
        tools, names = offered(self.tools, self.tool_choice)
        use = None
        if names:
            if style.calls is None:
                raise bad_request(
                    "This model calls no tools, or its recipe does not say how ('chat.tool_format' "
                    "and a chat template that is told of tools).",
                    "tools",
                    "unsupported_parameter",
                )
            made = [usable(tool, style) for tool in tools if tool.name in names]
            ignored.extend(place for _, place in made if place is not None)
            choice = self.tool_choice
            use = ToolUse(
                tuple(tool for tool, _ in made),
                required=choice is not None and choice.mode == "required",
                # as OpenAI's: a function that is named is called once
                parallel=self.parallel_tool_calls and not (choice is not None and choice.once),
            )
        budget = self.thinking_token_budget
        return Reply(
            grammar,
            use,
            show_thought=self.include_reasoning,
            thought_tokens=self._thinking.tokens if budget is None else budget,
        )

    @property
    def _thinking(self) -> Thinking:
        return agreed(self.reasoning_effort, self.reasoning, self.thinking)

    def check(self) -> None:
        super().check()
        offered(self.tools, self.tool_choice)
        _ = self._thinking
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
