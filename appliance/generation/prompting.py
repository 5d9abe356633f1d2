"""From what a request says to prompts that fit: template, tokens, media, length."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

from appliance.errors import ApplianceError, bad_request, context_length_exceeded
from appliance.generation.answers import AnswerLength
from appliance.generation.conversation import ChatPrompt
from appliance.media.intake import Intake
from appliance.media.source import Source
from appliance.metrics import Metrics
from appliance.prompt.build import Item, Prompt, build_chat, build_text
from appliance.prompt.template import ChatTemplate, Postponed
from appliance.prompt.tokenizer import Tokenizer
from appliance.prompt.tokenizer_file import TokenizerFailed
from engine.request import MediaItem
from engine.scheduling.admission import admission

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

    @property
    def media_tokens(self) -> dict[str, int]:
        tokens: dict[str, int] = {}
        for item in self.media:
            tokens[item.modality] = tokens.get(item.modality, 0) + item.length
        return tokens


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
    ) -> None:
        """`switched_off` are modalities that the model has and the configuration allows none of."""
        self.tokenizer = tokenizer
        self._template = template
        self.limits = limits
        self._intake = intake
        self.modalities = modalities
        self._metrics = metrics
        self._pool = pool
        self._switched_off = switched_off

    async def chat(self, asked: ChatPrompt, length: AnswerLength) -> Job:
        """The prompt of a conversation. Raises ApplianceError.

        What cannot fit is refused before any media are decoded where their headers tell enough.
        """
        conversation = asked.conversation
        template = self._template
        if asked.template is not None:
            make = partial(template.with_source, asked.template)
            template = await asyncio.get_running_loop().run_in_executor(self._pool, make)
        template.options(asked.template_kwargs, asked.think)  # or refuse, before any work
        self._check_modalities(conversation.sources)
        certain = self.tokenizer.least_tokens(conversation.certain_length)
        self._check_least(max(certain, conversation.parts), "messages")

        async def prompt(items: Sequence[Item]) -> Prompt:
            build = partial(
                build_chat,
                template,
                conversation.messages,
                items,
                add_generation_prompt=asked.add_generation_prompt,
                continue_final_message=asked.continue_final_message,
                kwargs=asked.template_kwargs,
                think=asked.think,
            )
            if conversation.text_length < LONG_TEXT and asked.template is None:
                with contextlib.suppress(Postponed):
                    return _encoded(partial(build, brief=True), "messages")
            return await self._aside(build, "messages")

        if not conversation.sources or self._intake is None:
            return self._job((await prompt([])).token_ids, length, "messages")
        taken = self._intake.take(conversation.sources, asked.owner, asked.media_options)
        async with taken as items:
            made = await prompt(items)
            job = self._job(made.token_ids, length, "messages")
            starts = [span.start for span in made.spans]
            return replace(job, media=await self._intake.load(items, asked.owner, starts))

    async def text(self, source: str | list[int], length: AnswerLength, param: str) -> Job:
        """The prompt of a completion. Raises ApplianceError for ids outside the vocabulary."""
        if isinstance(source, str):
            self._check_least(self.tokenizer.least_tokens(len(source)), param)
            build = partial(build_text, source, self.tokenizer)
            short = len(source) < LONG_TEXT
            prompt = _encoded(build, param) if short else await self._aside(build, param)
            ids = prompt.token_ids
        else:
            ids = source
            self._check_least(len(ids), param)
            size = self.tokenizer.vocab_size
            if min(ids) < 0 or max(ids) >= size:
                raise bad_request(
                    f"'{param}' holds token ids outside the vocabulary of {size} tokens.", param
                )
        if not ids:
            raise bad_request(f"'{param}' is empty after tokenizing.", param)
        return self._job(ids, length, param)

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

    def _check_least(self, tokens: int, param: str) -> None:
        """Refuse what cannot fit before any work is done for it. Raises ApplianceError."""
        if tokens >= self.limits.longest:
            kind = _kind(param)
            raise self._too_long(f"your {kind} resulted in at least {tokens} tokens", kind, param)

    def _job(self, ids: list[int], length: AnswerLength, param: str) -> Job:
        """Raises ApplianceError when prompt and answer cannot fit."""
        limits, least = self.limits, 1 if length.wanted is None else length.wanted
        reason = admission(len(ids), least, limits.max_len, limits.pages, limits.page_size)
        if reason is not None:
            alone = admission(len(ids), 1, limits.max_len, limits.pages, limits.page_size)
            kind, total = _kind(param), len(ids) + least
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
            f"Please reduce the length of the {kind} or completion."
            f"{cache if limits.longest < limits.max_len else ''}",
            field,
        )

    async def _aside(self, build: Callable[[], Prompt], param: str) -> Prompt:
        """Build a prompt without holding up the event loop."""
        work = partial(_encoded, build, param)
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _encoded(build: Callable[[], Prompt], param: str) -> Prompt:
    try:
        return build()
    except TokenizerFailed as failure:
        raise bad_request(
            "The model's tokenizer cannot encode this text.", param, "tokenizer_failed"
        ) from failure


def _kind(param: str) -> str:
    """What a prompt was sent as, in OpenAI's words."""
    return "messages" if param == "messages" else "prompt"


def sentence(reason: str) -> str:
    """A reason of the engine's as a sentence."""
    return f"{reason[:1].upper()}{reason[1:]}."
