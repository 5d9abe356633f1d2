"""The bodies of `POST /rerank` and `POST /score`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainValidator, ValidationInfo
from typing_extensions import TypedDict

from appliance.api.fields.pooled import PooledFields
from appliance.api.fields.text import read_text
from appliance.api.fields.whole import Whole
from appliance.errors import bad_request

MOST_PAIRS = 2048

Pairs = list[tuple[tuple[str, str], str]]  # two texts, and the JSON path of what is theirs alone


def _text(value: Any, info: ValidationInfo) -> str:
    return read_text(value, info.field_name or "")


def _documents(value: Any, info: ValidationInfo) -> list[str]:
    """Texts, each bare or as `{"text": …}`."""
    read = _list(value, "documents")
    ignored = info.context if isinstance(info.context, list) else []
    texts = []
    for index, one in enumerate(read):
        path = f"documents[{index}]"
        if isinstance(one, dict):
            ignored.extend(f"{path}.{name}" for name in one if name != "text")
            one, path = one.get("text"), f"{path}.text"
        texts.append(read_text(one, path))
    return texts


def _texts(value: Any, info: ValidationInfo) -> str | list[str]:
    """A text, or several."""
    name = info.field_name or ""
    if isinstance(value, str):
        return read_text(value, name)
    return [read_text(one, f"{name}[{index}]") for index, one in enumerate(_list(value, name))]


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        kinds = "an array of texts" if name == "documents" else "a string or an array of them"
        raise bad_request(f"'{name}' must be {kinds}.", name, "invalid_type")
    if not value:
        raise bad_request(f"'{name}' must not be empty.", name, "invalid_value")
    if len(value) > MOST_PAIRS:
        raise bad_request(
            f"'{name}' holds {len(value)} texts, more than {MOST_PAIRS}.", name, "invalid_value"
        )
    return value


class Document(TypedDict):
    """A text of a document."""

    text: str


Texts = Annotated[str | list[str], PlainValidator(_texts, json_schema_input_type=str | list[str])]


class RerankRequest(PooledFields):
    """A question, and documents to be put in the order in which they answer it."""

    query: Annotated[str, PlainValidator(_text, json_schema_input_type=str)]
    documents: Annotated[
        list[str],
        PlainValidator(_documents, json_schema_input_type=list[str | Document]),
        Field(min_length=1, max_length=MOST_PAIRS),
    ]
    top_n: Whole | None = Field(default=None, ge=0)  # 0 and null: all
    return_documents: bool = True

    @property
    def pairs(self) -> Pairs:
        return [
            ((self.query, text), f"documents[{index}]") for index, text in enumerate(self.documents)
        ]


class ScoreRequest(PooledFields):
    """Texts to be scored with others: one with each, or each with that in its place."""

    text_1: Texts
    text_2: Texts

    @property
    def pairs(self) -> Pairs:
        others = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        firsts = [self.text_1] if isinstance(self.text_1, str) else self.text_1
        if len(firsts) == 1:
            firsts = firsts * len(others)
        many = isinstance(self.text_2, list)
        return [
            (texts, f"text_2[{index}]" if many else "text_2")
            for index, texts in enumerate(zip(firsts, others, strict=True))
        ]

    def check(self) -> None:
        first, second = (
            1 if isinstance(texts, str) else len(texts) for texts in (self.text_1, self.text_2)
        )
        if first not in (1, second):
            raise bad_request(
                f"'text_1' has {first} texts and 'text_2' {second}: send one, or as many as there.",
                "text_1",
                "invalid_value",
            )
