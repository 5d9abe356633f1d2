"""What the routes that show prompts answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from typing_extensions import TypedDict

from appliance.prompt.detokenize import Detokenizer
from appliance.prompt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from appliance.generation.prompting import Shown  # loads the model's libraries

LARGE = 4096  # tokens from which on they are written off the event loop


class Tokenized(TypedDict):
    """A prompt's tokens, as vLLM's route of this name tells them."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None  # as the vocabulary writes them


class Detokenized(TypedDict):
    """The text of token ids."""

    prompt: str


class RenderedSpan(TypedDict):
    """Placeholders of one media item, from token `start` on."""

    modality: str
    item: int  # its number among all of the request
    start: int
    length: int


class Rendered(TypedDict):
    """A prompt: `text` has each item's placeholder once, `token_ids` as often as it has tokens."""

    text: str
    token_ids: list[int]
    spans: list[RenderedSpan]
    max_tokens: int  # that the answer would have at the most


def text_of(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of token ids; many are written by code that gives way to other threads."""
    if len(ids) <= LARGE:
        return tokenizer.decode(ids)
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
    return detokenizer.push(ids) + detokenizer.finish()


def rendered(shown: Shown, tokenizer: Tokenizer) -> Rendered:
    """A prompt for a reader; token ids that came as such are written as text."""
    prompt = shown.prompt
    text = text_of(prompt.token_ids, tokenizer) if prompt.text is None else prompt.text
    assert shown.max_tokens is not None
    spans: list[RenderedSpan] = [
        {
            "modality": span.modality,
            "item": span.item,
            "start": span.start,
            "length": span.length,
        }
        for span in prompt.spans
    ]
    return {
        "text": text,
        "token_ids": prompt.token_ids,
        "spans": spans,
        "max_tokens": shown.max_tokens,
    }
