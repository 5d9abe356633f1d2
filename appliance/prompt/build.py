"""A prompt: token ids, and where each media item stands among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from appliance.errors import bad_request
from appliance.prompt.probing import Message
from appliance.prompt.template import ChatTemplate
from appliance.prompt.thinking import UNSAID, Thinking
from appliance.prompt.tokenizer import Tokenizer


class Item(Protocol):
    """What a prompt needs to know of a media item."""

    @property
    def modality(self) -> str: ...

    @property
    def tokens(self) -> int: ...


@dataclass(slots=True, frozen=True)
class Span:
    """The placeholders of item number `item`: `length` of them from token `start` on."""

    start: int
    length: int
    modality: str
    item: int


@dataclass(slots=True, frozen=True)
class Prompt:
    """`text` is what was tokenized, before placeholders were multiplied; None where ids came."""

    text: str | None
    token_ids: list[int]
    spans: list[Span] = field(default_factory=list)


def build_chat(
    template: ChatTemplate,
    messages: Sequence[Message],
    items: Sequence[Item],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    kwargs: Mapping[str, Any] | None = None,
    thinking: Thinking = UNSAID,
    tools: Sequence[Mapping[str, Any]] = (),
    brief: bool = False,
) -> Prompt:
    """The prompt of a conversation whose media parts, in order, are `items`. Raises ApplianceError.

    `brief` raises Postponed where the template takes longer than an event loop can wait.

    What users write never becomes a special token: such text was marked before rendering and is
    tokenized as text.
    """
    rendered = template.render(
        messages,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        kwargs=kwargs,
        thinking=thinking,
        tools=tools,
        brief=brief,
    )
    tokenizer, family = template.tokenizer, template.family
    for modality in family.modalities:
        rendered = rendered.replaced(family.marker(modality), family.spelled_out(modality))
    if rendered.plain:
        ids = tokenizer.encode_guarded(rendered.text, rendered.plain)
    else:
        ids = tokenizer.encode(rendered.text, special=True)
    placeholders = {
        modality: _placeholder_id(tokenizer, family.placeholder(modality))
        for modality in family.modalities
    }
    return Prompt(rendered.text, *_expand(ids, items, placeholders))


def build_text(text: str, tokenizer: Tokenizer, *, own_tokens: bool = True) -> Prompt:
    """The prompt of a plain completion: the client writes all of it, special tokens included.

    `own_tokens` are those that the tokenizer adds by itself, as many do at the beginning.
    """
    if own_tokens:
        return Prompt(text, tokenizer.encode_prompt(text))
    return Prompt(text, tokenizer.encode(text, special=True))


def _expand(
    ids: list[int], items: Sequence[Item], placeholders: Mapping[str, int]
) -> tuple[list[int], list[Span]]:
    """Each placeholder as often as its item has tokens."""
    modalities = {token_id: modality for modality, token_id in placeholders.items()}
    places = [place for place, token_id in enumerate(ids) if token_id in modalities]
    if [modalities[ids[place]] for place in places] != [item.modality for item in items]:
        raise bad_request(
            "The model's chat template did not write every media item once, in the order sent.",
            "messages",
            "chat_template_failed",
        )
    expanded: list[int] = []
    spans: list[Span] = []
    start = 0
    for number, (place, item) in enumerate(zip(places, items, strict=True)):
        expanded += ids[start:place]
        spans.append(Span(len(expanded), item.tokens, item.modality, number))
        expanded += [ids[place]] * item.tokens
        start = place + 1
    return expanded + ids[start:], spans


def _placeholder_id(tokenizer: Tokenizer, placeholder: str) -> int:
    token_id = tokenizer.added.get(placeholder)
    if token_id is None:
        raise ValueError(f"the tokenizer has no token {placeholder}")
    return token_id
