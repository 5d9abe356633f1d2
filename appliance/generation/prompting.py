"""From what a request says to prompts that fit: template, tokens, media, length."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from appliance.errors import ApplianceError, bad_request, context_length_exceeded
from appliance.generation.answers import AnswerLength
from appliance.generation.conversation import ChatPrompt, Conversation, Message
from appliance.generation.stages import Stages
from appliance.media.intake import Intake
from appliance.media.intake import Item as MediaRead
from appliance.media.source import Source
from appliance.metrics import Metrics
from appliance.prompt.build import Item, Prompt, build_chat, build_text
from appliance.prompt.template import ChatTemplate, Postponed
from appliance.prompt.tokenizer import Tokenizer
from appliance.prompt.tokenizer_file import TokenizerFailed
from engine.request import MediaItem
from engine.sampling.constraint import ConstraintSource
from engine.scheduling.admission import admission

Made = TypeVar("Made")

ENDING = 256  # characters of a prompt, of which the mark of a thought is looked for at the end
NONE = AnswerLength(0, "input")
ANY = AnswerLength(None, "max_tokens")
LONG_TEXT = 4096  # characters from which on tokenizing leaves the event loop


@dataclass(slots=True, frozen=True)
class Limits:
    """What the plan says fits."""

    max_len: int
    pages: int
    page_size: int
    max_sequences: int

    @property
    def longest(self) -> int:
        """Tokens that one sequence can have here, prompt and answer together."""
        return min(self.max_len, self.pages * self.page_size)


@dataclass(slots=True, frozen=True)
class Job:
    """One prompt, ready for the engine, and how many tokens its answer may have."""

    prompt_ids: list[int]
    media: list[MediaItem]
    max_tokens: int
    param: str  # the field it came from
    text: str | None = None  # what was tokenized; None where ids came
    ending: str = ""  # of a conversation's text
    constraint: ConstraintSource | None = None  # that its answers are held to
    second: int | None = None  # where the second of two texts begins

    @property
    def media_tokens(self) -> dict[str, int]:
        tokens: dict[str, int] = {}
        for item in self.media:
            tokens[item.modality] = tokens.get(item.modality, 0) + item.length
        return tokens


@dataclass(slots=True, frozen=True)
class Shown:
    """A prompt as it would go to the engine, and how many tokens its answer might then have."""

    prompt: Prompt
    max_tokens: int | None

    @property
    def ending(self) -> str:
        """What the prompt's text ends with."""
        return (self.prompt.text or "")[-ENDING:]


class Prompting:
    """Makes prompts, built once a server."""

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        limits: Limits,
        intake: Intake | None,
        modalities: tuple[str, ...],
        metrics: Metrics,
        pool: Executor,
        switched_off: tuple[str, ...] = (),
        embedding_template: ChatTemplate | None = None,
    ) -> None:
        """`switched_off` are modalities that the model has and the configuration allows none of.

        `embedding_template` is what everything is put into that a vector is made of.
        """
        self.tokenizer = tokenizer
        self._template = template
        self.limits = limits
        self._intake = intake
        self.modalities = modalities
        self._metrics = metrics
        self._pool = pool
        self._switched_off = switched_off
        self._embedding_template = embedding_template

    async def embedded_chat(self, asked: ChatPrompt) -> Job:
        """The prompt that a conversation's vector is made of. Raises ApplianceError."""
        template = self._embedding_template or self._template
        if template.source is None:
            raise bad_request(
                "This model has no chat template, and its recipe none for embeddings "
                "(embeddings.template); send 'input'.",
                "messages",
                "chat_template_missing",
            )
        return await self._chat(asked, NONE, Stages(), template, "messages")

    async def embedded_text(self, source: str | list[int], param: str) -> Job:
        """The prompt that a text's vector is made of. Raises ApplianceError."""
        template = self._embedding_template
        if template is None or not isinstance(source, str):
            return await self.text(source, param, NONE)
        message: Message = {"role": "user", "content": source}
        length = len(source.strip())
        alone = Conversation([message], text_length=len(source), certain_length=length, parts=1)
        asked = ChatPrompt(alone, add_generation_prompt=False)
        return await self._chat(asked, NONE, Stages(), template, param)

    async def pair(self, texts: tuple[str, str], param: str) -> Job:
        """The prompt in which two texts are scored. Raises ApplianceError."""
        encode = partial(_pair, self.tokenizer, texts, param)
        short = sum(map(len, texts)) < LONG_TEXT
        ids, second = encode() if short else await self.aside(encode)
        return replace(self._job(ids, NONE, param), second=second)

    async def chat(self, asked: ChatPrompt, length: AnswerLength, stages: Stages) -> Job:
        """The prompt of a conversation. Raises ApplianceError.

        What cannot fit is refused before any media are decoded where their headers tell enough.
        """
        return await self._chat(asked, length, stages, self._template, "messages")

    async def _chat(
        self,
        asked: ChatPrompt,
        length: AnswerLength,
        stages: Stages,
        template: ChatTemplate,
        param: str,
    ) -> Job:
        read = self._conversation(asked, length, stages, template, param)
        async with read as (made, items):
            job = replace(
                self._job(made.token_ids, length, param),
                text=made.text,
                ending=(made.text or "")[-ENDING:],
            )
            if self._intake is None or not items:
                return job
            stages.end("prompt")
            starts = [span.start for span in made.spans]
            media = await self._intake.load(items, asked.owner, starts)
            stages.end("media")
            return replace(job, media=media)

    async def text(self, source: str | list[int], param: str, length: AnswerLength) -> Job:
        """The prompt of a completion. Raises ApplianceError for ids outside the vocabulary."""
        made = await self._text(source, length, param)
        return replace(self._job(made.token_ids, length, param), text=made.text)

    async def shown_chat(self, asked: ChatPrompt, length: AnswerLength | None = None) -> Shown:
        """What `chat` would make, media read but not decoded; without `length` of any length.

        Raises ApplianceError.
        """
        read = self._conversation(asked, length or ANY, Stages(), self._template, "messages")
        async with read as (made, _):
            return self._shown(made, length, "messages")

    async def shown_text(
        self,
        source: str | list[int],
        length: AnswerLength | None,
        param: str,
        *,
        own_tokens: bool = True,
    ) -> Shown:
        """What `text` would make; `own_tokens` are those that the tokenizer adds by itself.

        Raises ApplianceError.
        """
        made = await self._text(source, length or ANY, param, own_tokens, empty=length is None)
        return self._shown(made, length, param)

    def _shown(self, made: Prompt, length: AnswerLength | None, param: str) -> Shown:
        most = None if length is None else self._job(made.token_ids, length, param).max_tokens
        return Shown(made, most)

    @asynccontextmanager
    async def _conversation(
        self,
        asked: ChatPrompt,
        length: AnswerLength,
        stages: Stages,
        template: ChatTemplate,
        param: str,
    ) -> AsyncIterator[tuple[Prompt, list[MediaRead]]]:
        """The prompt of a conversation and its media, which are read and measured."""
        conversation = asked.conversation
        if asked.template is not None:
            template = await self.aside(partial(template.with_source, asked.template))
        template.options(asked.template_kwargs, asked.thinking)  # or refuse, before any work
        self._check_modalities(conversation.sources)
        certain = self.tokenizer.least_tokens(conversation.certain_length)
        self._check_least(max(certain, conversation.parts), length, param)

        async def prompt(items: Sequence[Item]) -> Prompt:
            build = partial(
                build_chat,
                template,
                conversation.messages,
                items,
                add_generation_prompt=asked.add_generation_prompt,
                continue_final_message=asked.continue_final_message,
                kwargs=asked.template_kwargs,
                thinking=asked.thinking,
                tools=asked.tools,
            )
            characters = conversation.text_length + asked.tools_length
            if characters < LONG_TEXT and asked.template is None:
                with contextlib.suppress(Postponed):
                    return _encoded(partial(build, brief=True), param)
            return await self.aside(partial(_encoded, build, param))

        if not conversation.sources or self._intake is None:
            yield await prompt([]), []
            return
        taken = self._intake.take(conversation.sources, asked.owner, asked.media_options)
        stages.end("prompt")
        async with taken as items:
            stages.end("fetch")
            yield await prompt(items), items

    async def _text(
        self,
        source: str | list[int],
        length: AnswerLength,
        param: str,
        own_tokens: bool = True,
        *,
        empty: bool = False,
    ) -> Prompt:
        """The prompt that a text or token ids are; `empty` ones are refused unless wanted."""
        if isinstance(source, str):
            self._check_least(self.tokenizer.least_tokens(len(source)), length, param)
            build = partial(build_text, source, self.tokenizer, own_tokens=own_tokens)
            short = len(source) < LONG_TEXT
            prompt = (
                _encoded(build, param)
                if short
                else await self.aside(partial(_encoded, build, param))
            )
        else:
            self._check_least(len(source), length, param)
            size = self.tokenizer.vocab_size
            if min(source) < 0 or max(source) >= size:
                raise bad_request(
                    f"'{param}' holds token ids outside the vocabulary of {size} tokens.", param
                )
            prompt = Prompt(None, source)
        if not prompt.token_ids and not empty:
            raise bad_request(f"'{param}' is empty after tokenizing.", param)
        return prompt

    async def heard(self, source: Source, owner: bytes) -> MediaItem:
        """A sound that is no part of a prompt, with its tensors. Raises ApplianceError."""
        self._check_modalities([source])
        assert self._intake is not None
        async with self._intake.take([source], owner) as items:
            [item] = await self._intake.load(items, owner, [0])
        return item

    def _check_modalities(self, sources: Sequence[Source]) -> None:
        for source in sources:
            modality = source.modality
            if modality not in self.modalities:
                self._metrics.media_refusals.labels("unsupported_parameter", modality).inc()
                plural = modality if modality == "audio" else f"{modality}s"
                why = f"This model takes no {plural}."
                if modality in self._switched_off:
                    why = (
                        f"This server's configuration has {plural} off (media.{modality}.limit=0); "
                        "the model could take them if its operator allowed some."
                    )
                raise bad_request(why, source.field, "unsupported_parameter")

    def _check_least(self, tokens: int, length: AnswerLength, param: str) -> None:
        """Refuse what cannot fit before any work is done for it. Raises ApplianceError."""
        if tokens + _one(length) > self.limits.longest:
            kind = _kind(param)
            raise self._too_long(f"your {kind} resulted in at least {tokens} tokens", kind, param)

    def _job(self, ids: list[int], length: AnswerLength, param: str) -> Job:
        """Raises ApplianceError when prompt and answer cannot fit."""
        limits, least = self.limits, 1 if length.wanted is None else length.wanted
        reason = admission(len(ids), least, limits.max_len, limits.pages, limits.page_size)
        if reason is not None:
            one, kind, total = _one(length), _kind(param), len(ids) + least
            if not one:
                raise self._too_long(f"your {kind} resulted in {total} tokens", kind, param)
            alone = admission(len(ids), one, limits.max_len, limits.pages, limits.page_size)
            asked = f"{total} tokens ({len(ids)} in the {kind}, {least} in the completion)"
            field = param if alone else length.field
            raise self._too_long(f"you requested {asked}", kind, field)
        room = limits.longest - len(ids)
        return Job(ids, [], room if length.wanted is None else length.wanted, param)

    def _too_long(self, however: str, kind: str, field: str) -> ApplianceError:
        """In OpenAI's words, by which clients know that they have to shorten something."""
        limits = self.limits
        cache = " The KV cache of this server holds no more."
        return context_length_exceeded(
            f"This model's maximum context length is {limits.longest} tokens. However, {however}. "
            f"Please reduce the length of the {kind}{'' if kind == 'input' else ' or completion'}."
            f"{cache if limits.longest < limits.max_len else ''}",
            field,
        )

    async def aside(self, work: Callable[[], Made]) -> Made:
        """Do work without holding up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _encoded(build: Callable[[], Prompt], param: str) -> Prompt:
    try:
        return build()
    except TokenizerFailed as failure:
        raise _unencodable(param) from failure


def _pair(tokenizer: Tokenizer, texts: tuple[str, str], param: str) -> tuple[list[int], int | None]:
    try:
        return tokenizer.encode_pair(*texts)
    except TokenizerFailed as failure:
        raise _unencodable(param) from failure


def _unencodable(param: str) -> ApplianceError:
    return bad_request("The model's tokenizer cannot encode this text.", param, "tokenizer_failed")


def _kind(param: str) -> str:
    """What a prompt was sent as, in OpenAI's words."""
    kind = param.partition("[")[0]
    return "prompt" if kind == "prompt" else "messages" if kind == "messages" else "input"


def _one(length: AnswerLength) -> int:
    """The least that an answer has: a token, or none where a vector is the answer."""
    return 0 if length.wanted == 0 else 1


def sentence(reason: str) -> str:
    """A reason of the engine's as a sentence."""
    return f"{reason[:1].upper()}{reason[1:]}."
