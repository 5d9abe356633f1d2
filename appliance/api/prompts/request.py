"""The bodies of `POST /tokenize` and `/detokenize`; rendering takes those of the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainValidator

from appliance.api.accept import Unbuilt
from appliance.api.chat.request import ChatRequest
from appliance.api.completions.request import CompletionRequest
from appliance.api.fields.named import NamedFields
from appliance.api.fields.prompts import PromptSource
from appliance.api.fields.sampling import outside_vocabulary
from appliance.api.fields.text import read_text
from appliance.api.fields.unbuilt import UNBUILT_CHAT, UNBUILT_COMPLETION
from appliance.api.fields.whole import Whole
from appliance.errors import bad_request


def _text(value: Any) -> list[PromptSource]:
    return [read_text(value, "prompt")]


class TokenizeChat(ChatRequest):
    """A chat request whose prompt is to be counted; it may be sent as it would be to the chat."""

    model: str = ""  # whichever is here
    return_token_strs: bool = False


class TokenizeText(CompletionRequest):
    """A text to be tokenized as `/v1/completions` does, or without the tokenizer's own tokens."""

    model: str = ""
    prompt: Annotated[list[PromptSource], PlainValidator(_text, json_schema_input_type=str)]
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(NamedFields):
    """Token ids to be written as text."""

    model: str = ""
    tokens: list[Whole]

    def check_tokens(self, most: int, vocab_size: int) -> None:
        """Raise ApplianceError for too many tokens, or for one that the model does not have."""
        if len(self.tokens) > most:
            raise bad_request(f"'tokens' may hold at most {most}.", "tokens", "invalid_value")
        for index, token in enumerate(self.tokens):
            if not 0 <= token < vocab_size:
                raise outside_vocabulary(token, vocab_size, f"tokens[{index}]")


def tokenized(body: Mapping[str, Any]) -> tuple[type[TokenizeChat | TokenizeText], Unbuilt]:
    """What a body to be tokenized is. Raises ApplianceError for both or none."""
    chat, text = body.get("messages") is not None, body.get("prompt") is not None
    if chat and text:
        raise bad_request("'messages' and 'prompt' exclude each other; send one.", "prompt")
    if not chat and not text:
        raise bad_request(
            "'prompt' or 'messages' is required.", "prompt", "missing_required_parameter"
        )
    if chat:
        return TokenizeChat, UNBUILT_CHAT
    return TokenizeText, UNBUILT_COMPLETION
