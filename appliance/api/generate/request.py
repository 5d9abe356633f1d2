"""The body of `POST /generate`: a plain completion whose fields have SGLang's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
)

from appliance.api.completions.request import CompletionRequest
from appliance.api.fields.named import NamedFields
from appliance.api.fields.prompts import PromptSource, read_prompts
from appliance.api.fields.unbuilt import harmless
from appliance.api.fields.validation import unsupported
from appliance.api.fields.whole import Whole
from appliance.errors import ApplianceError, bad_request

MAX_NEW_TOKENS = 128
PARAMS = "sampling_params"
OTHER_NAMES: Final[dict[str, str]] = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "no_stop_trim": "include_stop_str_in_output",
    "sampling_seed": "seed",
}
SAME_NAMES: Final[tuple[str, ...]] = (
    *("temperature", "top_p", "top_k", "min_p", "n", "stop", "stop_token_ids", "logit_bias"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "ignore_eos"),
    *("skip_special_tokens", "regex", "json_schema", "ebnf"),
)
OURS: Final[dict[str, str]] = {**OTHER_NAMES, **{name: name for name in SAME_NAMES}}
THEIRS: Final[dict[str, str]] = {ours: f"{PARAMS}.{theirs}" for theirs, ours in OURS.items()}
QUOTED: Final[re.Pattern[str]] = re.compile(r"(?<=')\w+(?=['.\[])")

UNBUILT_PARAMS: Final[dict[str, tuple[Any, ...]]] = {
    "custom_params": ({},),
    "spaces_between_special_tokens": (True,),
    "stop_regex": ([], ""),
    "structural_tag": ("",),
}
UNBUILT_GENERATE: Final[dict[str, tuple[Any, ...]]] = {
    "audio_data": ([], ""),
    "custom_logit_processor": ("",),
    "image_data": ([], ""),
    "input_embeds": ([],),
    "logprob_start_len": (-1, 0),
    "lora_path": ("",),
    "modalities": ([],),
    "return_hidden_states": (False,),
    "return_logprob": (False,),
    "return_text_in_logprobs": (True, False),
    "session_params": ({},),
    "token_ids_logprob": ([],),
    "top_logprobs_num": (0,),
    "video_data": ([], ""),
}
PACE = ("stream_interval",)  # how often a stream speaks: as often as its reader takes


def _known(given: Any, info: ValidationInfo) -> Any:
    """What is known of the parameters; what nobody knows is told, what is not built refused."""
    if not isinstance(given, dict):
        return given
    known: dict[str, Any] = {}
    for name, value in given.items():
        if value is None or name in PACE:
            continue
        if name in OURS:
            known[name] = value
        elif name in UNBUILT_PARAMS:
            if not harmless(value, UNBUILT_PARAMS[name]):
                raise unsupported(f"{PARAMS}.{name}", UNBUILT_PARAMS[name])
        elif isinstance(info.context, list):
            info.context.extend([f"{PARAMS}.{name}"])
    return known


def _parameters() -> type[BaseModel]:
    """The model of them, each read as the field of plain completions that it is."""
    fields: dict[str, Any] = {}
    for theirs, ours in OURS.items():
        field = copy(CompletionRequest.model_fields[ours])
        if theirs == "max_new_tokens":
            field.default = MAX_NEW_TOKENS
        fields[theirs] = (field.annotation, field)
    model: type[BaseModel] = create_model(
        "SamplingParams",
        __config__=ConfigDict(strict=True, frozen=True, allow_inf_nan=False),
        __doc__="How tokens are chosen, and when an answer ends.",
        **fields,
    )
    return model


SamplingParams = _parameters()


def renamed(fault: ApplianceError, names: Mapping[str, str]) -> ApplianceError:
    """The same fault of fields that have other names."""
    fault.message = QUOTED.sub(lambda found: names.get(found[0], found[0]), fault.message)
    root = None if fault.param is None else re.match(r"\w+", fault.param)
    if fault.param is not None and root is not None:
        fault.param = names.get(root[0], root[0]) + fault.param[root.end() :]
    return fault


def _in_place(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """Read parameters, whose own readers know nothing of what they are inside of."""
    try:
        return read(value)
    except ApplianceError as fault:
        raise renamed(fault, THEIRS) from None


@dataclass(slots=True, frozen=True)
class Prompts:
    """What is to be continued; of `many`, a list of one too, the answers are a list."""

    sources: list[PromptSource]
    many: bool


def _ids(value: Any) -> Prompts:
    if isinstance(value, str) or (isinstance(value, list) and any(type(x) is str for x in value)):
        raise bad_request(
            "'input_ids' must be an array of token ids, or of arrays of them.",
            "input_ids",
            "invalid_type",
        )
    many = isinstance(value, list) and any(isinstance(one, list) for one in value)
    return Prompts(read_prompts(value, "input_ids"), many)


def _texts(value: Any) -> Prompts:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(type(text) is str for text in texts):
        raise bad_request(
            "'text' must be a string, or an array of strings.", "text", "invalid_type"
        )
    return Prompts(read_prompts(value, "text"), value is texts)


class GenerateRequest(NamedFields):
    """One or many prompts to continue; `text` or `input_ids` is needed."""

    model: str = ""
    text: Annotated[
        Prompts | None, PlainValidator(_texts, json_schema_input_type=str | list[str])
    ] = None
    input_ids: Annotated[
        Prompts | None,
        PlainValidator(_ids, json_schema_input_type=list[int] | list[list[int]]),
    ] = None
    sampling_params: Annotated[
        SamplingParams,  # type: ignore[valid-type]
        BeforeValidator(_known),
        WrapValidator(_in_place),
    ] = SamplingParams()
    stream: bool = False
    rid: str | None = None
    priority: Whole = 0

    def check(self) -> None:
        if (self.text is None) == (self.input_ids is None):
            raise bad_request(
                "One of 'text' and 'input_ids' is required, and not both.",
                "text",
                "missing_required_parameter",
            )
        _ = self.completion()

    @property
    def prompts(self) -> Prompts:
        prompts = self.text or self.input_ids
        assert prompts is not None
        return prompts

    @property
    def prompt_field(self) -> str:
        return "text" if self.input_ids is None else "input_ids"

    def completion(self) -> CompletionRequest:
        """The same as a plain completion. Raises ApplianceError for what contradicts itself."""
        given: BaseModel = self.sampling_params
        values = {
            ours: getattr(given, theirs)
            for theirs, ours in OURS.items()
            if theirs in given.model_fields_set
        }
        values = {"max_tokens": MAX_NEW_TOKENS, **values, "priority": self.priority}
        request = CompletionRequest.model_construct(
            _fields_set=set(values),
            model=self.model,
            prompt=self.prompts.sources,
            stream=self.stream,
            **values,
        )
        try:
            request.check()
        except ApplianceError as fault:
            raise self.named(fault) from None
        return request

    def named(self, fault: ApplianceError) -> ApplianceError:
        """A fault of the plain completion in the names of this request."""
        return renamed(fault, {**THEIRS, "prompt": self.prompt_field})
