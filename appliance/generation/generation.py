"""From a checked request to running answers: prompts, engine, text."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from appliance.client import Client
from appliance.errors import bad_request, engine_failed, overloaded
from appliance.generation.answers import (
    AnswerLength,
    AnswerOptions,
    Answers,
    AnswerText,
    PromptScore,
    TokenClock,
)
from appliance.generation.conversation import ChatPrompt
from appliance.generation.parts import AnswerParser
from appliance.generation.prompting import Job, Prompting, sentence
from appliance.generation.sampling_defaults import SamplingDefaults
from appliance.metrics import Metrics
from appliance.prompt.detokenize import Detokenizer
from appliance.prompt.stops import StopStrings
from engine.errors import EngineDead, RequestRefused
from engine.request import Request, SamplingOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from appliance.generation.transcribing import Transcriber

logger = logging.getLogger("appliance.generation")

AT_ONCE = 32  # answers that begin in one turn of the event loop
# Log-probabilities that a request may come to, and all of them together: some 120 bytes each until
# they are read.
MOST_LOGPROBS, MOST_LOGPROBS_IN_ALL = 3_000_000, 6_000_000


class AnswerFields(Protocol):
    """A request's fields about its answers, whatever protocol it came by."""

    @property
    def answer_length(self) -> AnswerLength: ...

    def sampling(
        self, max_tokens: int, vocab_size: int, defaults: SamplingDefaults
    ) -> SamplingOptions:
        """The engine's options for an answer of at most `max_tokens`. Raises ApplianceError."""


class Generation:
    """Everything between the API and the engine, built once a server."""

    def __init__(
        self,
        *,
        client: Client,
        prompting: Prompting,
        metrics: Metrics,
        sampling: SamplingDefaults,
        parser: Callable[[], AnswerParser] | None = None,
    ) -> None:
        """`parser` makes what tells the parts of a chat's answer apart, one for each answer."""
        self.client = client
        self.tokenizer = prompting.tokenizer
        self.limits = prompting.limits
        self.modalities = prompting.modalities
        self.prompting = prompting
        self.transcriber: Transcriber | None = None  # of a model that transcribes
        self._metrics = metrics
        self._sampling = sampling
        self._parser = parser
        self._running: dict[Answers, int] = {}  # answers that the engine still works on
        self._tasks: set[asyncio.Task[None]] = set()
        self._logprobs = 0  # that unread answers may come to

    @property
    def active(self) -> int:
        """HTTP requests that are being generated."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Answers beyond those the engine can run at once."""
        return max(0, sum(self._running.values()) - self.limits.max_sequences)

    async def chat(
        self, prompt: ChatPrompt, fields: AnswerFields, options: AnswerOptions
    ) -> Answers:
        """Begin the answers to a conversation. Raises ApplianceError."""
        self._check_converses()
        job = await self.prompting.chat(prompt, fields.answer_length)
        return await self._start([job], fields, options, self._parser)

    async def complete(
        self, prompts: list[str | list[int]], fields: AnswerFields, options: AnswerOptions
    ) -> Answers:
        """Begin to go on from texts or token ids; answer `i` of prompt `j` is number `j * n + i`.

        Raises ApplianceError.
        """
        self._check_converses()
        many = len(prompts) > 1
        jobs: list[Job] = []
        for number, source in enumerate(prompts):
            param = f"prompt[{number}]" if many else "prompt"
            jobs.append(await self.prompting.text(source, fields.answer_length, param))
            if len(jobs) % AT_ONCE == 0:
                await asyncio.sleep(0)
        return await self._start(jobs, fields, options, None)

    async def pooled(self, request: Request, param: str) -> NDArray[np.float32]:
        """The vector of a request that asks for one and for no text. Raises ApplianceError."""
        ended = False
        try:
            async for output in self.client.submit(request):
                ended = output.finish_reason is not None
                if output.vector is not None:
                    return output.vector
            raise engine_failed("The engine gave the answer up.")
        except RequestRefused as refused:
            raise bad_request(sentence(str(refused)), param) from refused
        except EngineDead as dead:
            raise engine_failed("The engine stopped while it was answering.") from dead
        finally:
            if not ended:
                self.client.abort(request.id)

    def _check_converses(self) -> None:
        """Raise ApplianceError for a model that says what it hears, and nothing else."""
        if self.transcriber is not None:
            raise bad_request(
                "This model transcribes sounds: send them to /v1/audio/transcriptions.",
                "model",
                "unsupported_parameter",
            )

    async def answer(self, job: Job, fields: AnswerFields, options: AnswerOptions) -> Answers:
        """Begin the answers to a prompt that is there already. Raises ApplianceError."""
        return await self._start([job], fields, options, None)

    async def _start(
        self,
        jobs: list[Job],
        fields: AnswerFields,
        options: AnswerOptions,
        parser: Callable[[], AnswerParser] | None,
    ) -> Answers:
        vocabulary, defaults = self.tokenizer.vocab_size, self._sampling
        sampling = [fields.sampling(job.max_tokens, vocabulary, defaults) for job in jobs]
        noted = sum(map(partial(logprobs_of, options.n), jobs, sampling))
        self._check_logprobs(noted)
        scores = [PromptScore(job.prompt_ids, job.media_tokens) for job in jobs]
        answers = Answers(scores, options.n)
        self._running[answers] = answers.total
        self._logprobs += noted
        answers.on_close(partial(self._forget_logprobs, noted))
        options.origin.charge(answers.prompt_tokens)
        try:
            await self._begin(jobs, sampling, options, answers, parser)
        except BaseException:
            answers.close()
            raise
        return answers

    async def _begin(
        self,
        jobs: list[Job],
        sampling: list[SamplingOptions],
        options: AnswerOptions,
        answers: Answers,
        parser: Callable[[], AnswerParser] | None,
    ) -> None:
        begun = 0
        for number, job in enumerate(jobs):
            first = number * options.n
            texts = [self._answer_text(first + i, options, parser) for i in range(options.n)]
            work = self._run(number, job, sampling[number], options, answers, texts)
            task = asyncio.get_running_loop().create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            answers.on_close(task.cancel)
            if first + options.n - begun >= AT_ONCE and number + 1 < len(jobs):
                begun = first + options.n
                await asyncio.sleep(0)  # all tasks of a moment begin in one turn of the loop

    def _check_logprobs(self, count: int) -> None:
        """Raise ApplianceError where there would be too many to keep until they are read."""
        if count > MOST_LOGPROBS:
            raise bad_request(
                f"The answers may come to {count} log-probabilities, more than {MOST_LOGPROBS}: "
                "ask for fewer tokens, answers or top log-probabilities.",
                "logprobs",
                "invalid_value",
            )
        if count and self._logprobs + count > MOST_LOGPROBS_IN_ALL:
            raise overloaded("Too many log-probabilities are asked for already; try again soon.")

    def _forget_logprobs(self, count: int) -> None:
        self._logprobs -= count

    def stop_all(self, reason: str) -> None:
        """End whatever still runs with an error."""
        for answers in list(self._running):
            answers.fail(engine_failed(reason))
        for task in list(self._tasks):
            task.cancel()

    async def _run(
        self,
        number: int,
        job: Job,
        sampling: SamplingOptions,
        options: AnswerOptions,
        answers: Answers,
        texts: list[AnswerText],
    ) -> None:
        request = Request(
            id=secrets.token_hex(12),
            prompt_ids=job.prompt_ids,
            sampling=sampling,
            media=job.media,
            n=options.n,
            priority=options.priority,
            salt=options.salt,
            constraint=options.grammar,
        )
        ended = False
        try:
            ended = await self._follow(request, number, options, answers, texts)
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
            self._leave(answers, options.n)
            self._metrics.end_to_end.observe(time.perf_counter() - options.origin.arrived)
            self._metrics.prompt_length.observe(len(job.prompt_ids))

    async def _follow(
        self,
        request: Request,
        number: int,
        options: AnswerOptions,
        answers: Answers,
        texts: list[AnswerText],
    ) -> bool:
        """Pass outputs on until every answer has ended; False when the engine gave one up."""
        clock = TokenClock(self._metrics, options.origin.arrived, options.n)
        prompt = answers.prompts[number]
        left = options.n
        async for output in self.client.submit(request):
            text = texts[output.index]
            if text.finish_reason is not None:
                continue
            if output.finish_reason in ("error", "abort"):
                answers.fail(engine_failed(output.error or "The engine gave the answer up."))
                return False
            clock.tick(output.index, len(output.token_ids))
            options.origin.charge(len(output.token_ids))
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

    def _answer_text(
        self, index: int, options: AnswerOptions, parser: Callable[[], AnswerParser] | None
    ) -> AnswerText:
        return AnswerText(
            index,
            Detokenizer(
                self.tokenizer,
                skip_special_tokens=options.skip_special_tokens,
                continuing=options.continuing,
            ),
            StopStrings(list(options.stop), options.include_stop) if options.stop else None,
            min_tokens=options.min_tokens,
            show_end=options.include_stop,
            discard=options.discard,
            parser=None if parser is None else parser(),
        )

    def _leave(self, answers: Answers, count: int) -> None:
        left = self._running.get(answers, 0) - count
        if left > 0:
            self._running[answers] = left
        else:
            self._running.pop(answers, None)


def logprobs_of(n: int, job: Job, sampling: SamplingOptions) -> int:
    """How many log-probabilities `n` answers to a prompt may come to, its own included."""
    count = 0
    if sampling.logprobs is not None:
        count += n * sampling.max_tokens * (1 + sampling.logprobs)
    if sampling.prompt_logprobs is not None:
        count += n * len(job.prompt_ids) * (1 + sampling.prompt_logprobs)
    return count
