"""From a checked request to running answers: prompt, media, length check, engine, text."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from appliance.errors import bad_request, context_length_exceeded, engine_failed
from appliance.generation.answers import Answers, AnswerText, PromptScore, TokenClock, Wish
from appliance.generation.sampling_defaults import SamplingDefaults
from appliance.media.intake import Intake, LoadedItem
from appliance.media.sources import modality_of
from appliance.metrics import EngineSource, Metrics
from appliance.prompt.build import Item, Prompt, Span, build_chat, build_text
from appliance.prompt.detokenize import Detokenizer
from appliance.prompt.stops import StopStrings
from appliance.prompt.template import ChatTemplate
from appliance.prompt.tokenizer import Tokenizer
from engine.errors import EngineDead, RequestRefused
from engine.models.family import Family
from engine.request import MediaItem, Output, Request, SamplingOptions
from engine.scheduling.admission import admission

logger = logging.getLogger("appliance.generation.generation")

LONG_TEXT = 4096  # characters from which on tokenizing leaves the event loop


class Client(EngineSource, Protocol):
    """The engine as the server sees it."""

    def submit(self, request: Request) -> AsyncIterator[Output]: ...

    def abort(self, request_id: str, index: int | None = None) -> None: ...


@dataclass(slots=True, frozen=True)
class Limits:
    """What the plan says fits."""

    max_len: int
    pages: int
    page_size: int
    max_sequences: int


@dataclass(slots=True, frozen=True)
class Job:
    """One prompt, ready for the engine."""

    prompt_ids: list[int]
    media: list[MediaItem]
    param: str  # the field it came from

    @property
    def media_tokens(self) -> dict[str, int]:
        tokens: dict[str, int] = {}
        for item in self.media:
            tokens[item.modality] = tokens.get(item.modality, 0) + item.length
        return tokens


class Generation:
    """Everything between the API and the engine, built once a server."""

    def __init__(
        self,
        *,
        client: Client,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        family: Family,
        limits: Limits,
        intake: Intake | None,
        modalities: tuple[str, ...],
        metrics: Metrics,
        pool: Executor,
        sampling: SamplingDefaults,
    ) -> None:
        self.client = client
        self.sampling = sampling
        self.tokenizer = tokenizer
        self.limits = limits
        self.modalities = modalities
        self._template = template
        self._family = family
        self._intake = intake
        self._metrics = metrics
        self._pool = pool
        self._running: dict[Answers, int] = {}  # answers that the engine still works on
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def active(self) -> int:
        """HTTP requests that are being generated."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Answers beyond those the engine can run at once."""
        return max(0, sum(self._running.values()) - self.limits.max_sequences)

    @property
    def longest(self) -> int:
        """Tokens that one sequence can have here, prompt and answer together."""
        return min(self.limits.max_len, self.limits.pages * self.limits.page_size)

    async def chat(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        template: str | None,
        template_kwargs: Mapping[str, Any],
        wanted_tokens: int | None,
        tokens_field: str,
        owner: bytes = b"",
        media_options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> tuple[Job, int]:
        """The prompt of a conversation, and how many tokens its answer may have.

        What cannot fit is refused before any media are decoded where their headers tell enough.
        `owner` is whose media uuids are meant; `media_options` are by modality. Raises
        ApplianceError.
        """
        chat_template = self._template if template is None else self._template.with_source(template)
        size, media = survey(messages)
        for modality, param in media:
            if modality not in self.modalities:
                self._metrics.media_refusals.labels("unsupported_parameter", modality).inc()
                plural = modality if modality == "audio" else f"{modality}s"
                raise bad_request(f"This model takes no {plural}.", param, "unsupported_parameter")

        async def prompt(items: Sequence[Item]) -> Prompt:
            build = partial(
                build_chat,
                chat_template,
                messages,
                items,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                kwargs=template_kwargs,
            )
            return await self._off_loop(size, build)

        if not media or self._intake is None:
            job = Job((await prompt([])).token_ids, [], "messages")
            return job, self.budget(job, wanted_tokens, tokens_field)
        async with self._intake.take(messages, owner, media_options) as items:
            made = await prompt(items)
            job = Job(made.token_ids, [], "messages")
            budget = self.budget(job, wanted_tokens, tokens_field)
            loaded = await self._intake.load(items, owner)
        return replace(job, media=[placed(span, loaded) for span in made.spans]), budget

    async def text(self, source: str | list[int], param: str) -> Job:
        """The prompt of a completion. Raises ApplianceError for ids outside the vocabulary."""
        if isinstance(source, str):
            prompt = await self._off_loop(len(source), partial(build_text, source, self.tokenizer))
            ids = prompt.token_ids
        else:
            ids = source
            size = self.tokenizer.vocab_size
            if min(ids) < 0 or max(ids) >= size:
                raise bad_request(
                    f"'{param}' holds token ids outside the vocabulary of {size} tokens.", param
                )
        if not ids:
            raise bad_request(f"'{param}' is empty after tokenizing.", param)
        return Job(ids, [], param)

    def budget(self, job: Job, wanted: int | None, field: str) -> int:
        """How many tokens the answer may have. Raises ApplianceError when they cannot fit."""
        length = len(job.prompt_ids)
        limits = self.limits
        least = wanted if wanted is not None else 1
        reason = admission(length, least, limits.max_len, limits.pages, limits.page_size)
        if reason is not None:
            alone = admission(length, 1, limits.max_len, limits.pages, limits.page_size)
            raise context_length_exceeded(sentence(reason), job.param if alone else field)
        return wanted if wanted is not None else self.longest - length

    def start(self, jobs: list[Job], sampling: list[SamplingOptions], wish: Wish) -> Answers:
        """Put every job into the engine; answer `i` of job `j` has index `j * n + i`."""
        answers = Answers([PromptScore(job.prompt_ids, job.media_tokens) for job in jobs], wish.n)
        self._running[answers] = answers.total
        tasks = [
            asyncio.get_running_loop().create_task(self._run(number, job, options, wish, answers))
            for number, (job, options) in enumerate(zip(jobs, sampling, strict=True))
        ]
        for task in tasks:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            answers.on_close(task.cancel)
        return answers

    def stop_all(self, reason: str) -> None:
        """End whatever still runs with an error."""
        for answers in list(self._running):
            answers.fail(engine_failed(reason))
        for task in list(self._tasks):
            task.cancel()

    async def _run(
        self, number: int, job: Job, sampling: SamplingOptions, wish: Wish, answers: Answers
    ) -> None:
        request = Request(
            id=secrets.token_hex(12),
            prompt_ids=job.prompt_ids,
            sampling=sampling,
            media=job.media,
            n=wish.n,
            priority=wish.priority,
            salt=wish.salt,
        )
        ended = False
        try:
            ended = await self._follow(request, number, wish, answers)
        except RequestRefused as refused:
            answers.fail(bad_request(sentence(str(refused)), job.param))
        except EngineDead:
            answers.fail(engine_failed("The engine stopped while it was answering."))
        except asyncio.CancelledError:
            self._metrics.aborted.inc()
            raise
        except Exception:
            logger.exception("a request failed while it was generated")
            answers.fail(engine_failed("The server failed while it was answering."))
        finally:
            if not ended:
                self.client.abort(request.id)
            self._leave(answers, wish.n)
            self._metrics.end_to_end.observe(time.perf_counter() - wish.arrived)
            self._metrics.prompt_length.observe(len(job.prompt_ids))

    async def _follow(self, request: Request, number: int, wish: Wish, answers: Answers) -> bool:
        """Pass outputs on until every answer has ended; False when the engine gave one up."""
        clock = TokenClock(self._metrics, wish.arrived, wish.n)
        prompt = answers.prompts[number]
        texts = [self._answer_text(number * wish.n + index, wish) for index in range(wish.n)]
        left = wish.n
        async for output in self.client.submit(request):
            text = texts[output.index]
            if text.finish_reason is not None:
                continue
            if output.finish_reason in ("error", "abort"):
                answers.fail(engine_failed(output.error or "The engine gave the answer up."))
                return False
            clock.tick(output.index, len(output.token_ids))
            if answers.first_token is None:
                answers.first_token = clock.first_token
            prompt.cached_tokens = max(prompt.cached_tokens, output.cached_tokens)
            if output.prompt_logprobs is not None:
                prompt.logprobs = output.prompt_logprobs
            delta = text.push(output)
            if delta.finish_reason is not None:
                left -= 1
                self._metrics.finished.labels(delta.finish_reason).inc()
                self._metrics.answer_length.observe(text.tokens)
                if output.finish_reason is None and left:
                    self.client.abort(request.id, output.index)
            answers.push(delta)
            if not left:
                if output.finish_reason is None:
                    self.client.abort(request.id)
                return True
        raise EngineDead("the outputs ended before the answers")

    def _answer_text(self, index: int, wish: Wish) -> AnswerText:
        return AnswerText(
            index,
            Detokenizer(
                self.tokenizer,
                skip_special_tokens=wish.skip_special_tokens,
                continuing=wish.continuing,
            ),
            StopStrings(list(wish.stop), wish.include_stop) if wish.stop else None,
            min_tokens=wish.min_tokens,
            show_end=wish.include_stop,
            discard=wish.discard,
        )

    async def _off_loop(self, size: int, build: Callable[[], Prompt]) -> Prompt:
        if size < LONG_TEXT:
            return build()
        return await asyncio.get_running_loop().run_in_executor(self._pool, build)

    def _leave(self, answers: Answers, count: int) -> None:
        left = self._running.get(answers, 0) - count
        if left > 0:
            self._running[answers] = left
        else:
            self._running.pop(answers, None)


def survey(messages: list[dict[str, Any]]) -> tuple[int, list[tuple[str, str]]]:
    """Characters of text, and modality and JSON path of every media part."""
    size, media = 0, []
    for row, message in enumerate(messages):
        content = message["content"]
        if isinstance(content, str):
            size += len(content)
            continue
        for column, part in enumerate(content):
            if part["type"] == "text":
                size += len(part["text"])
            else:
                path = f"messages[{row}].content[{column}].{part['type']}"
                media.append((modality_of(part["type"]), part.get("param", path)))
    return size, media


def placed(span: Span, items: list[LoadedItem]) -> MediaItem:
    """An item at its place in the prompt."""
    item = items[span.item]
    return MediaItem(item.modality, item.digest, span.start, span.length, item.tensors)


def sentence(reason: str) -> str:
    """A reason of the engine's as a sentence."""
    return f"{reason[:1].upper()}{reason[1:]}."
