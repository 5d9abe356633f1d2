"""Answers while they are being generated: tokens become text, and text waits for its reader."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from appliance.errors import ApplianceError
from appliance.generation.parts import AnswerParser, Parts
from appliance.metrics import Metrics
from appliance.prompt.detokenize import Detokenizer
from appliance.prompt.stops import StopStrings
from engine.request import Output, TokenLogprob

if TYPE_CHECKING:
    from engine.sampling.constraint import ConstraintSource  # which imports torch


@dataclass(slots=True)
class Delta:
    """What came to answer `index` since somebody last looked."""

    index: int
    parts: Parts = field(default_factory=Parts)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def text(self) -> str:
        return self.parts.text

    def add(self, later: Delta) -> None:
        """Append what came after it."""
        self.parts.add(later.parts)
        self.token_ids += later.token_ids
        self.logprobs += later.logprobs
        self.finish_reason = later.finish_reason


class AnswerText:
    """Turns one answer's tokens into text: never half a character, cut at stop strings.

    Stop strings are looked for after the first `min_tokens` tokens. The token that ended the answer
    is not shown unless `show_end`; with `discard` nothing is, and the first token ends it. A
    `parser` tells what of the text is none for the reader: reasoning, calls of tools.
    """

    def __init__(
        self,
        index: int,
        detokenizer: Detokenizer,
        stops: StopStrings | None,
        *,
        min_tokens: int = 0,
        show_end: bool = False,
        discard: bool = False,
        parser: AnswerParser | None = None,
    ) -> None:
        self._index = index
        self._detokenizer = detokenizer
        self._stops = stops
        self._min_tokens = min_tokens
        self._show_end = show_end
        self._discard = discard
        self._parser = parser
        self._called = False
        self.tokens = 0
        self.finish_reason: str | None = None

    def push(self, output: Output) -> Delta:
        """The visible part of one step. Sets `finish_reason`, also when a stop string was met."""
        if self._discard:
            self.finish_reason = "length"
            return Delta(self._index, finish_reason="length")
        ids, logprobs, finish = output.token_ids, output.logprobs or [], output.finish_reason
        shown = ids
        if finish == "stop" and ids and not self._show_end:
            shown, logprobs = ids[:-1], logprobs[: len(ids) - 1]
        early = self.tokens + len(ids) <= self._min_tokens
        self.tokens += len(ids)
        text = self._detokenizer.push(shown)
        if finish is not None:
            text += self._detokenizer.finish()
        if self._stops is not None and not early:
            text, stopped = self._stops.push(text)
            if stopped:
                finish = "stop"
            elif finish is not None:
                text += self._stops.finish()
        parts = self._parsed(text, ended=finish is not None)
        self._called |= bool(parts.tool_calls)
        if self._called and finish == "stop":
            finish = "tool_calls"
        self.finish_reason = finish
        return Delta(self._index, parts, list(ids), list(logprobs), finish)

    def _parsed(self, text: str, *, ended: bool) -> Parts:
        if self._parser is None:
            return Parts(text)
        parts = self._parser.push(text)
        if ended:
            parts.add(self._parser.finish())
        return parts


@dataclass(slots=True, frozen=True)
class AnswerLength:
    """How many tokens an answer is to have, None for all that fit, and the field that says so."""

    wanted: int | None
    field: str


@dataclass(slots=True, frozen=True)
class Origin:
    """Whose a request is, and since when it is here.

    `scope` is what its entries in caches are kept apart by, empty for those that all share; tokens
    of its prompt and answers are told to `charge`.
    """

    arrived: float = field(default_factory=time.perf_counter)
    scope: bytes = b""
    charge: Callable[[int], None] = lambda tokens: None


@dataclass(slots=True, frozen=True)
class AnswerOptions:
    """How the answers are wanted, besides sampling."""

    n: int = 1
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    priority: int = 0
    salt: bytes = b""
    min_tokens: int = 0  # stop strings count after these
    continuing: bool = False  # the answer goes on a text, so a space at its beginning is meant
    discard: bool = False  # the prompt's score alone is wanted
    grammar: ConstraintSource | None = None  # that the answers' text is held to
    origin: Origin = field(default_factory=Origin)


class TokenClock:
    """Measures the time to a request's first token and between those of each answer."""

    def __init__(self, metrics: Metrics, arrived: float, n: int) -> None:
        self._metrics = metrics
        self._arrived = arrived
        self._last: list[float] = [0.0] * n
        self.first_token: float | None = None

    def tick(self, index: int, tokens: int) -> None:
        """Answer `index` got `tokens` more."""
        now = time.perf_counter()
        if self.first_token is None:
            self.first_token = now - self._arrived
            self._metrics.first_token.observe(self.first_token)
        if self._last[index] and tokens:
            self._metrics.inter_token.observe((now - self._last[index]) / tokens)
        self._last[index] = now


@dataclass(slots=True)
class PromptScore:
    """A prompt as the engine saw it: ids, cached tokens, and log-probabilities if asked for."""

    token_ids: list[int]
    media_tokens: dict[str, int]
    cached_tokens: int = 0
    logprobs: list[TokenLogprob | None] | None = None


class Answers:
    """Every answer to one HTTP request.

    A reader that is slower than the engine finds all that came in between joined into one delta an
    answer; it never holds the engine back.
    """

    def __init__(self, prompts: list[PromptScore], n: int) -> None:
        self.prompts = prompts
        self.n = n
        self.generated = 0
        self.closed = False
        self.first_token: float | None = None  # seconds
        self._left = len(prompts) * n
        self._pending: dict[int, Delta] = {}
        self._failure: ApplianceError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._whole = False
        self._on_close: list[Callable[[], object]] = []

    @property
    def total(self) -> int:
        return len(self.prompts) * self.n

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt.token_ids) for prompt in self.prompts)

    @property
    def done(self) -> bool:
        """Whether every answer is finished and read."""
        return self.closed or (self._left == 0 and not self._pending)

    def summary(self) -> dict[str, object]:
        """What the log line tells of them."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": sum(prompt.cached_tokens for prompt in self.prompts),
            "generated_tokens": self.generated,
            "first_token": None if self.first_token is None else round(self.first_token, 4),
        }

    def on_close(self, action: Callable[[], object]) -> None:
        """Do `action` when nobody wants the answers any more."""
        self._on_close.append(action)

    def push(self, delta: Delta) -> None:
        """Add to an answer."""
        self.generated += len(delta.token_ids)
        if delta.finish_reason is not None:
            self._left -= 1
        known = self._pending.get(delta.index)
        if known is None:
            self._pending[delta.index] = delta
        else:
            known.add(delta)
        if self._left == 0 or not self._whole:
            self._wake()

    def fail(self, failure: ApplianceError) -> None:
        """End all answers with a failure; what came before it can still be read."""
        if self._failure is None:
            self._failure = failure
        self._wake()

    def close(self) -> None:
        """Nobody reads any more: stop generating and wake the reader."""
        if not self.closed:
            self.closed = True
            for action in self._on_close:
                action()
            self._wake()

    async def take(self, timeout: float | None = None) -> list[Delta]:
        """All that came since the last call; empty after `timeout` seconds or when closed.

        Raises ApplianceError when generation failed and all before it was read.
        """
        if not self._pending and self._failure is None and self._left and not self.closed:
            await self._wait(timeout)
        if self._pending:
            pending, self._pending = self._pending, {}
            return list(pending.values())
        if self._failure is not None and not self.closed:
            raise self._failure
        return []

    async def whole(self) -> list[Delta]:
        """Every answer complete, by index; empty when closed before. Raises as `take` does."""
        self._whole = True
        while self._left and self._failure is None and not self.closed:
            await self._wait(None)
        if self.closed:
            return []
        if self._failure is not None:
            raise self._failure
        return [self._pending[index] for index in sorted(self._pending)]

    async def _wait(self, timeout: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if timeout is None else loop.call_later(timeout, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
