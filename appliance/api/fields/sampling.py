"""The fields that chat and plain completions share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields, replace
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from appliance.api.fields.request import INT32
from appliance.api.fields.structure import StructureFields
from appliance.api.fields.whole import Whole
from appliance.errors import ApplianceError, bad_request
from appliance.generation.answers import AnswerLength, AnswerOptions, Origin
from appliance.generation.sampling_defaults import SamplingDefaults
from appliance.generation.style import Reply
from engine.request import SamplingOptions

INT64 = 2**63
LONGEST_STOP = 4096  # characters
MOST_TOKENS_NAMED = 1024  # in `logit_bias` and `stop_token_ids`
LEAST_TOP_P = 1e-6  # below, it is the best token alone, which float32 might lose


def _one_or_many(stop: Any) -> Any:
    """A list of what to stop at, which an empty text is not."""
    if isinstance(stop, str):
        stop = [stop]
    return [one for one in stop if one not in ("", None)] if isinstance(stop, list) else stop


StopString = Annotated[str, Field(max_length=LONGEST_STOP)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(BaseModel):
    """What a stream carries besides text."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # padding against traffic analysis; never added

    @model_validator(mode="before")
    @classmethod
    def _tell_unknown(cls, given: Any, info: ValidationInfo) -> Any:
        if isinstance(given, dict) and isinstance(info.context, list):
            unknown = (name for name in given if name not in cls.model_fields)
            info.context.extend(f"stream_options.{name}" for name in unknown)
        return given


class SamplingFields(StructureFields, ABC):
    """Ranges are OpenAI's; where OpenAI has no such field, those of vLLM."""

    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, ge=0, le=1)
    n: Whole = Field(default=1, ge=1, le=128)
    stop: Annotated[
        list[StopString],
        BeforeValidator(_one_or_many, json_schema_input_type=StopString | list[StopString | None]),
        Field(max_length=4),
    ] = Field(default_factory=list)
    seed: Whole | None = Field(default=None, ge=-INT64, lt=INT64)
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MOST_TOKENS_NAMED)] = Field(
        default_factory=dict
    )
    top_k: Whole = Field(default=0, ge=-1, lt=INT32)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=10)
    min_tokens: Whole = Field(default=0, ge=0, lt=INT32)
    stop_token_ids: Annotated[list[Whole], Field(max_length=MOST_TOKENS_NAMED)] = Field(
        default_factory=list
    )
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    timings: bool = False

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def check(self) -> None:
        """Raise for fields that contradict each other."""
        if (self.include_usage or self.continuous_usage) and not self.stream:
            raise bad_request(
                "'stream_options' is only allowed when 'stream' is true.", "stream_options"
            )
        _ = self.structure

    @property
    @abstractmethod
    def answer_length(self) -> AnswerLength:
        """How long the answer is to be."""

    @property
    @abstractmethod
    def wanted_logprobs(self) -> int | None:
        """How many of the best tokens to name at each place; None for no log-probabilities."""

    @property
    def prompt_logprobs(self) -> int | None:
        """The same of the prompt."""
        return None

    def sampling(
        self, max_tokens: int, vocab_size: int, defaults: SamplingDefaults
    ) -> SamplingOptions:
        """The engine's options; `defaults` stand for fields that the request leaves out.

        Raises ApplianceError for token ids outside the vocabulary.
        """
        if self.min_tokens > max_tokens:
            raise bad_request(
                f"'min_tokens' is {self.min_tokens}, more than the {max_tokens} tokens that "
                f"'{self.answer_length.field}' and the context leave.",
                "min_tokens",
            )
        given = replace(
            defaults,
            **{
                field.name: getattr(self, field.name)
                for field in fields(SamplingDefaults)
                if field.name in self.model_fields_set
            },
        )
        best_alone = given.top_p < LEAST_TOP_P
        return SamplingOptions(
            max_tokens=max_tokens,
            temperature=given.temperature,
            top_p=1.0 if best_alone else given.top_p,
            top_k=1 if best_alone else max(given.top_k, 0),
            min_p=given.min_p,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repetition_penalty=given.repetition_penalty,
            logit_bias=self._bias(vocab_size),
            seed=self.seed,
            min_tokens=self.min_tokens,
            stop_token_ids=self._stop_token_ids(vocab_size),
            ignore_eos=self.ignore_eos,
            logprobs=self.wanted_logprobs,
            prompt_logprobs=self.prompt_logprobs,
        )

    def answer_options(
        self,
        origin: Origin,
        *,
        reply: Reply,
        continuing: bool,
        discard: bool = False,
    ) -> AnswerOptions:
        """What the request wants of its answers besides sampling."""
        return AnswerOptions(
            n=self.n,
            stop=tuple(self.stop),
            include_stop=self.include_stop_str_in_output,
            skip_special_tokens=self.skip_special_tokens,
            priority=self.priority,
            salt=self.salt(origin.scope),
            min_tokens=self.min_tokens,
            continuing=continuing,
            discard=discard,
            reply=reply,
            timed=self.timings,
            origin=origin,
        )

    def _bias(self, vocab_size: int) -> dict[int, float]:
        bias: dict[int, float] = {}
        for token, value in self.logit_bias.items():
            if not (token.isascii() and token.isdecimal() and len(token) < 10):
                raise bad_request("'logit_bias' must map token ids to numbers.", "logit_bias")
            if int(token) >= vocab_size:
                raise outside_vocabulary(int(token), vocab_size, "logit_bias")
            bias[int(token)] = value
        return bias

    def _stop_token_ids(self, vocab_size: int) -> frozenset[int]:
        for index, token in enumerate(self.stop_token_ids):
            if not 0 <= token < vocab_size:
                raise outside_vocabulary(token, vocab_size, f"stop_token_ids[{index}]")
        return frozenset(self.stop_token_ids)


def outside_vocabulary(token: int, vocab_size: int, path: str) -> ApplianceError:
    """400 for a token id that the model does not have."""
    return bad_request(
        f"'{path}' names a token outside the vocabulary of {vocab_size} tokens.",
        path,
        "invalid_value",
    )
