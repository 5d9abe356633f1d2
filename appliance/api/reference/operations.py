"""What each route takes and answers; its body is told by the model that reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel
from typing_extensions import TypedDict

from appliance.api.audio.request import TranscriptionRequest
from appliance.api.chat.request import ChatRequest
from appliance.api.completions.request import CompletionRequest
from appliance.api.embeddings.request import EmbeddingRequest
from appliance.api.generate.reply import Generated
from appliance.api.generate.request import GenerateRequest
from appliance.api.messages.request import CountRequest, MessagesRequest
from appliance.api.models import SglangCard
from appliance.api.prompts.reply import Detokenized, Rendered, Tokenized
from appliance.api.prompts.request import DetokenizeRequest, TokenizeChat, TokenizeText
from appliance.api.rerank.request import RerankRequest, ScoreRequest
from appliance.api.responses.request import ResponsesRequest
from appliance.metrics import CONTENT_TYPE

JSON = "application/json"


class Usage(TypedDict):
    """What an answer cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Answered(TypedDict):
    """OpenAI's answer of this name: `choices` are messages, or texts of plain completions."""

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: Usage


class Transcribed(TypedDict):
    """What is said; subtitles and plain text are no JSON."""

    text: str


class Spent(TypedDict):
    """What vectors or scores cost."""

    prompt_tokens: int
    total_tokens: int


class Listed(TypedDict):
    """Vectors or scores, in the order sent."""

    object: str
    model: str
    data: list[dict[str, Any]]
    usage: Spent


class Ranked(TypedDict):
    """Documents, the best first."""

    id: str
    model: str
    results: list[dict[str, Any]]
    usage: Spent


class Counted(TypedDict):
    """Tokens of a prompt."""

    input_tokens: int


class ModelCard(TypedDict):
    """The model that is served, and what it takes."""

    id: str
    object: str
    created: int
    owned_by: str
    max_model_len: int
    modalities: dict[str, list[str]]
    limits: dict[str, Any]


class ModelList(TypedDict):
    """Every model that is served here."""

    object: str
    data: list[ModelCard]


class Version(TypedDict):
    """What runs."""

    version: str
    recipe: str | None
    model: str
    digest: str


class Status(TypedDict):
    """A probe's answer, beside which the phase of the start is told."""

    status: str


@dataclass(slots=True, frozen=True)
class Operation:
    """One method of one path.

    `bodies` are the models of which a body is one, sent as `takes` says; `reply` is the type of its
    answer, None for one that is no JSON. `open` ones need no key. With `model` they need the loaded
    model.
    """

    summary: str
    bodies: tuple[type[BaseModel], ...] = ()
    reply: Any = None
    media_type: str = JSON
    streams: bool = False
    open: bool = False
    model: bool = False
    media: bool = False  # of a request, which can be refused
    takes: str = JSON


PROBE = Operation("Whether requests are taken.", reply=Status, open=True, model=True)
SGLANG_CARD = Operation(
    "The model that is served, as SGLang tells of it.", reply=SglangCard, model=True
)

RERANK = Operation(
    "Put documents in the order in which they answer a question.",
    (RerankRequest,),
    Ranked,
    model=True,
)
SCORE = Operation("Score pairs of texts.", (ScoreRequest,), Listed, model=True)

TRANSCRIPTION = Operation(
    "Tell what is said in a sound, the form's `file`.",
    (TranscriptionRequest,),
    Transcribed,
    streams=True,
    model=True,
    media=True,
    takes="multipart/form-data",
)

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/chat/completions"): Operation(
        "Continue a conversation.",
        (ChatRequest,),
        Answered,
        streams=True,
        model=True,
        media=True,
    ),
    ("POST", "/v1/responses"): Operation(
        "Respond to items.",
        (ResponsesRequest,),
        dict[str, Any],
        streams=True,
        model=True,
        media=True,
    ),
    ("GET", "/v1/responses/{id}"): Operation("A response that is kept.", reply=dict[str, Any]),
    ("DELETE", "/v1/responses/{id}"): Operation("Forget a response.", reply=dict[str, Any]),
    ("POST", "/v1/messages"): Operation(
        "Continue a conversation, as Anthropic's route of this name.",
        (MessagesRequest,),
        dict[str, Any],
        streams=True,
        model=True,
        media=True,
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        "Count the tokens of such a conversation.", (CountRequest,), Counted, model=True, media=True
    ),
    ("POST", "/v1/audio/transcriptions"): TRANSCRIPTION,
    ("POST", "/v1/audio/translations"): replace(TRANSCRIPTION, summary="The same in English."),
    ("POST", "/v1/embeddings"): Operation(
        "Make vectors of texts, token ids or a conversation.",
        (EmbeddingRequest,),
        Listed,
        model=True,
        media=True,
    ),
    ("POST", "/v1/rerank"): RERANK,
    ("POST", "/rerank"): RERANK,
    ("POST", "/v1/score"): SCORE,
    ("POST", "/score"): SCORE,
    ("POST", "/v1/completions"): Operation(
        "Continue text or token ids.", (CompletionRequest,), Answered, streams=True, model=True
    ),
    ("POST", "/v1/chat/completions/render"): Operation(
        "Show the prompt of a conversation.", (ChatRequest,), Rendered, model=True, media=True
    ),
    ("POST", "/v1/completions/render"): Operation(
        "Show the prompts of plain completions.", (CompletionRequest,), list[Rendered], model=True
    ),
    ("POST", "/generate"): Operation(
        "Continue text or token ids, as SGLang's route of this name.",
        (GenerateRequest,),
        Generated | list[Generated],
        streams=True,
        model=True,
    ),
    ("GET", "/get_model_info"): SGLANG_CARD,
    ("GET", "/model_info"): SGLANG_CARD,
    ("POST", "/tokenize"): Operation(
        "Count and tell the tokens of a text or a conversation.",
        (TokenizeText, TokenizeChat),
        Tokenized,
        model=True,
        media=True,
    ),
    ("POST", "/detokenize"): Operation(
        "Write token ids as text.", (DetokenizeRequest,), Detokenized, model=True
    ),
    ("GET", "/v1/models"): Operation("The model that is served.", reply=ModelList, model=True),
    ("GET", "/v1/models/{id}"): Operation("The same by its name.", reply=ModelCard, model=True),
    ("GET", "/livez"): Operation(
        "Whether the engine is alive.", reply=Status, open=True, model=True
    ),
    ("GET", "/readyz"): PROBE,
    ("GET", "/health"): PROBE,
    ("GET", "/ping"): PROBE,
    ("POST", "/ping"): PROBE,
    ("GET", "/startupz"): Operation(
        "Whether the model is loaded.", reply=Status, open=True, model=True
    ),
    ("GET", "/metrics"): Operation("Prometheus metrics.", media_type=CONTENT_TYPE),
    ("GET", "/version"): Operation("What runs.", reply=Version),
    ("GET", "/openapi.json"): Operation("This document.", reply=dict[str, Any]),
    ("GET", "/docs"): Operation("A page that shows it.", media_type="text/html", open=True),
}
