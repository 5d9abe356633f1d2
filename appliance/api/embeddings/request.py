"""The body of `POST /v1/embeddings`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema

from appliance.api.chat.message_schema import messages_schema
from appliance.api.chat.messages import read_messages
from appliance.api.fields.pooled import PooledFields
from appliance.api.fields.prompts import PromptSource, read_prompts
from appliance.api.fields.whole import Whole
from appliance.errors import bad_request
from appliance.generation.conversation import ChatPrompt, Conversation

MOST_INPUTS = 2048  # OpenAI's limit


def _input(value: Any) -> list[PromptSource]:
    prompts = read_prompts(value, "input")
    if len(prompts) > MOST_INPUTS:
        raise bad_request(
            f"'input' holds {len(prompts)} inputs, more than {MOST_INPUTS}.",
            "input",
            "invalid_value",
        )
    return prompts


def _messages(value: Any, info: ValidationInfo) -> Conversation:
    return read_messages(value, info.context if isinstance(info.context, list) else [])


class EmbeddingRequest(PooledFields):
    """Texts or token ids, a vector each; or one conversation, which may bring media."""

    input: Annotated[
        list[PromptSource] | None,
        PlainValidator(_input, json_schema_input_type=PromptSource | list[PromptSource]),
    ] = None
    messages: Annotated[
        Conversation | None, PlainValidator(_messages), WithJsonSchema(messages_schema())
    ] = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Whole | None = Field(default=None, ge=1)
    normalize: bool | None = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    def prompts(self, owner: bytes) -> list[PromptSource] | ChatPrompt:
        """What vectors are to be made of; `owner` is whose media uuids are meant."""
        if self.messages is None:
            return self.input or []
        return ChatPrompt(
            self.messages,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            template_kwargs=self.chat_template_kwargs,
            owner=owner,
        )

    def check(self) -> None:
        if self.input is None and self.messages is None:
            raise bad_request("'input' is required.", "input", "missing_required_parameter")
        if self.input is not None and self.messages is not None:
            raise bad_request("'input' and 'messages' exclude each other; send one.", "messages")
        if self.messages is None:
            for name in sorted(OF_MESSAGES & self.model_fields_set):
                if getattr(self, name):
                    raise bad_request(f"'{name}' needs 'messages'.", name)


OF_MESSAGES = {"add_generation_prompt", "continue_final_message", "chat_template_kwargs"}
