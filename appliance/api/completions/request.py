"""The body of `POST /v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from appliance.api.fields.prompts import PromptSource, read_prompts
from appliance.api.fields.sampling import SamplingFields
from appliance.api.fields.whole import Whole
from appliance.errors import bad_request
from appliance.generation.answers import AnswerLength

MAX_ANSWERS = 1024


def _prompts(value: Any) -> list[PromptSource]:
    return read_prompts(value, "prompt")


def _or_none(logprobs: Any) -> Any:
    """A number of log-probabilities, for which false is none, as in chats."""
    return None if logprobs is False else logprobs


Most = Annotated[int, Field(ge=0, le=5)]


class CompletionRequest(SamplingFields):
    """One or many prompts to continue."""

    prompt: Annotated[
        list[PromptSource],
        PlainValidator(_prompts, json_schema_input_type=PromptSource | list[PromptSource]),
    ]
    max_tokens: Whole = Field(default=16, ge=0)
    logprobs: Annotated[
        Whole | None,
        BeforeValidator(_or_none, json_schema_input_type=Most | Literal[False] | None),
    ] = Field(default=None, ge=0, le=5)
    echo: bool = False
    best_of: Whole | None = Field(default=None, ge=1, le=20)

    @property
    def answer_length(self) -> AnswerLength:
        return AnswerLength(self.max_tokens or 1, "max_tokens")

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def prompt_logprobs(self) -> int | None:
        return self.logprobs if self.echo else None

    def check(self) -> None:
        super().check()
        if self.best_of is not None and self.best_of != self.n:
            raise bad_request(
                "'best_of' is not supported by this server except as equal to 'n'.",
                "best_of",
                "unsupported_parameter",
            )
        if len(self.prompt) * self.n > MAX_ANSWERS:
            raise bad_request(
                f"{len(self.prompt)} prompts with n={self.n} are more than {MAX_ANSWERS} answers.",
                "prompt",
            )
