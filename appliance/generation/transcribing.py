"""From a sound to segments of text: window by window, as openai/whisper goes through it.

Windows, their segments and what may be said are those of transformers' reference
(`WhisperForConditionalGeneration.generate` with `return_timestamps`), whatever the answer's format:
its text is the same in all.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
import struct
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from appliance.errors import bad_request
from appliance.generation.alignment import token_times
from appliance.generation.answers import AnswerLength, AnswerOptions, Answers, Delta, Origin
from appliance.generation.prompting import Job
from appliance.generation.sampling_defaults import SamplingDefaults
from appliance.generation.segments import FRAME, Span, cut
from appliance.generation.words import words_of
from appliance.media.source import Source
from engine.device.shared_tensors import SharedTensors
from engine.models.whisper import Whisper
from engine.models.whisper_tokens import whisper_tokens
from engine.request import Alignment, MediaItem, Request, SamplingOptions
from engine.sampling.transcript import OneOf, Transcript

if TYPE_CHECKING:
    from appliance.generation.generation import Generation

BEFORE = "<|startofprev|>"
ENGLISH = "en"
Read = Callable[[Answers], Awaitable[list[Delta]]]  # all of the answers, while somebody waits


@dataclass(slots=True, frozen=True)
class Wish:
    """What is asked of a sound. `language` is a code, None for whichever is heard.

    With `measured` it is told how likely the text is, and how likely nothing was said.
    """

    task: str = "transcribe"
    language: str | None = None
    prompt: str = ""
    temperature: float = 0.0
    measured: bool = False
    words: bool = False  # with the times of each


@dataclass(slots=True, frozen=True)
class Word:
    """One word with the marks that stand at it, and when it is said, in seconds."""

    text: str
    start: float
    end: float


@dataclass(slots=True, frozen=True)
class Segment:
    """What is said from `start` to `end`, in seconds; `seek` is its window's first frame.

    The log-probability is the mean of its window's tokens, before any rule.
    """

    start: float
    end: float
    text: str
    tokens: list[int]
    seek: int
    logprob: float = 0.0
    no_speech: float = 0.0
    words: tuple[Word, ...] = ()

    @property
    def compression(self) -> float:
        """How many times shorter zlib makes its text: a loop of words is above 2.4."""
        content = self.text.encode()
        return len(content) / len(zlib.compress(content)) if content else 0.0


@dataclass(slots=True, frozen=True)
class OneAnswer:
    """`AnswerFields` of a window: greedy, or with a temperature."""

    temperature: float
    logprobs: int | None

    @property
    def answer_length(self) -> AnswerLength:
        return AnswerLength(None, "file")

    def sampling(
        self, max_tokens: int, vocab_size: int, defaults: SamplingDefaults
    ) -> SamplingOptions:
        """The recipe's defaults are for chats: a transcript is greedy unless it is told."""
        return SamplingOptions(max_tokens, temperature=self.temperature, logprobs=self.logprobs)


class Sound:
    """Features of a sound, and its windows."""

    def __init__(self, item: MediaItem, family: Whisper) -> None:
        tensors = item.tensors
        assert isinstance(tensors, SharedTensors)
        self._features: Any = tensors.array("features")  # [bands, frames]
        self._digest, self._family = item.digest, family
        self._window: tuple[int, MediaItem] | None = None
        samples = int(tensors.array("samples")[0])
        self.seconds = samples / family.audio_rate()
        self._heard = min(self.frames, -(-samples // family.log_mel.hop))

    @property
    def frames(self) -> int:
        return int(self._features.shape[1])

    def states(self, seek: int) -> int:
        """How many of a window's states are of the sound; all, if none is."""
        states = (self._heard - seek) // 2
        return min(states, self._family.states) if states > 0 else self._family.states

    def window(self, seek: int) -> MediaItem:
        """What is heard from frame `seek` on; behind the end the features are zeros."""
        if self._window is None or self._window[0] != seek:
            family = self._family
            features = self._features[:, seek : seek + family.context]
            missing = family.context - features.shape[1]
            features = np.pad(features, ((0, 0), (0, missing)))
            digest = hashlib.sha256(self._digest + struct.pack("<q", seek)).digest()
            tensors = SharedTensors.store({"features": features})
            self._window = seek, MediaItem("audio", digest, 0, 0, tensors, family.states)
        return self._window[1]


class Transcriber:
    """Transcribes and translates, built once a server for a model that does."""

    def __init__(self, generation: Generation, family: Whisper) -> None:
        """Raises CheckpointBroken for a checkpoint without the tokens that it takes."""
        self.generation = generation
        self.family = family
        self.tokens = tokens = whisper_tokens(family.folder)
        self.rules = Transcript(
            tokens.end, tokens.first_time, tokens.first_times, tokens.never, tokens.never_first
        )

    def language(self, given: str) -> str:
        """The code of a language. Raises ApplianceError for one that the model does not know."""
        known = self.tokens.languages
        code = self.tokens.code(given) if known else ENGLISH
        if code is None or (not known and given.strip().lower() not in (ENGLISH, "english")):
            raise bad_request(
                f"The model knows no language '{given[:40]}': it takes codes such as "
                f"{', '.join(sorted(known)[:5]) or ENGLISH}.",
                "language",
                "invalid_value",
            )
        return code

    async def hear(
        self, source: Source, wish: Wish, origin: Origin, owner: bytes, read: Read
    ) -> Hearing:
        """Take a sound in and find its language; windows are heard when they are asked for.

        `read` waits for answers, and raises when nobody wants them any more. Raises ApplianceError.
        """
        before = self._before(wish.prompt)
        item = await self.generation.prompting.heard(source, owner)
        hearing = Hearing(self, Sound(item, self.family), wish, origin, before, read)
        await hearing.begin()
        return hearing

    def _before(self, text: str) -> list[int]:
        """What is said to have come before; of a long one its end, as openai/whisper takes it."""
        if not text.strip():
            return []
        tokenizer = self.generation.tokenizer
        mark = tokenizer.added.get(BEFORE)
        if mark is None:
            raise bad_request(
                f"This model takes no prompt: its tokenizer has no token {BEFORE}.",
                "prompt",
                "unsupported_parameter",
            )
        most = self.generation.limits.max_len // 2 - 1
        return [mark, *tokenizer.encode(f" {text.strip()}", special=False)[-most:]]


class Hearing:
    """One sound on its way through the model."""

    def __init__(
        self,
        transcriber: Transcriber,
        sound: Sound,
        wish: Wish,
        origin: Origin,
        before: list[int],
        read: Read,
    ) -> None:
        self._transcriber = transcriber
        self._sound = sound
        self._wish = wish
        self._origin = origin
        self._before = before
        self._read = read
        self.seconds = sound.seconds
        self.language = wish.language or ENGLISH
        self.heard = self.said = 0  # tokens of prompts, and of answers

    async def begin(self) -> None:
        """Find the language, if it is to be found. Raises ApplianceError."""
        tokens = self._transcriber.tokens
        if tokens.languages and self._wish.language is None:
            choice = OneOf(tuple(tokens.languages.values()))
            found = await self._ask(0, [tokens.start], choice, 0.0)
            self.language = tokens.language_of(found.token_ids[0])

    async def windows(self) -> AsyncIterator[list[Segment]]:
        """The segments of each window. Raises ApplianceError."""
        tokens, seek = self._transcriber.tokens, 0
        while seek < self._sound.frames:
            frames = min(self._transcriber.family.context, self._sound.frames - seek)
            quiet = await self._quiet(seek) if self._wish.measured else 0.0
            answer = await self._ask(
                seek,
                [*self._before, *self._told],
                self._transcriber.rules,
                self._wish.temperature,
                measured=self._wish.measured,
            )
            said, likely = answer.token_ids, [one.logprob for one in answer.logprobs]
            if said and said[-1] == tokens.end:
                said = said[:-1]
            spans, step = cut(said, tokens.first_time, frames) if said else ([], frames)
            times = await self._times(seek, answer.token_ids) if self._wish.words else []
            common = (seek, sum(likely) / max(1, len(likely)), quiet)
            yield [
                self._segment(one, said, times, *common) for one in spans if one.first < one.last
            ]
            seek += step if step > 0 else frames

    @cached_property
    def _told(self) -> list[int]:
        """What to do, in tokens."""
        tokens = self._transcriber.tokens
        if not tokens.languages:
            return [tokens.start]
        return [tokens.start, tokens.languages[self.language], tokens.tasks[self._wish.task]]

    def _segment(
        self,
        span: Span,
        said: list[int],
        times: list[float],
        seek: int,
        logprob: float,
        quiet: float,
    ) -> Segment:
        end, tokenizer = self._transcriber.tokens.end, self._transcriber.generation.tokenizer
        begun = seek * FRAME
        places = [place for place in range(span.first, span.last) if said[place] < end]
        text = [said[place] for place in places]
        words, done = [], 0
        for word in words_of(text, self.language, tokenizer.decode) if times else ():
            first, last = places[done], places[done + word.tokens - 1]
            done += word.tokens
            spoken = begun + times[first], begun + times[min(last + 1, len(times) - 1)]
            words.append(Word(word.text.strip(), round(spoken[0], 2), round(spoken[1], 2)))
        return Segment(
            round(begun + span.start, 2),
            round(begun + span.end, 2),
            tokenizer.decode(text),
            said[span.first : span.last],
            seek,
            logprob,
            quiet,
            tuple(words),
        )

    async def _times(self, seek: int, said: list[int]) -> list[float]:
        """When each token of a window begins, in seconds of it; the last one as that before it."""
        before = [*self._before, *self._told]
        if len(said) < 2:
            return [0.0] * len(said)
        request = Request(
            id=secrets.token_hex(12),
            prompt_ids=before + said[:-1],
            media=[self._sound.window(seek)],
            salt=self._origin.scope,
            pooling="last",
            alignment=Alignment(
                self._transcriber.tokens.heads, len(before), self._sound.states(seek)
            ),
        )
        attention = await self._transcriber.generation.pooled(request, "file")
        times = await asyncio.get_running_loop().run_in_executor(None, token_times, attention)
        return [*times, times[-1]]

    async def _quiet(self, seek: int) -> float:
        """How likely it is that nothing is said, told where a language would be named."""
        tokens = self._transcriber.tokens
        only = OneOf((tokens.no_speech,))
        asked = [*self._before, tokens.start]
        answer = await self._ask(seek, asked, only, 0.0, measured=True)
        return math.exp(answer.logprobs[0].logprob)

    async def _ask(
        self,
        seek: int,
        ids: list[int],
        rules: OneOf | Transcript,
        temperature: float,
        *,
        measured: bool = False,
    ) -> Delta:
        """An answer about one window."""
        generation = self._transcriber.generation
        most = 1 if isinstance(rules, OneOf) else generation.limits.longest - len(ids)
        job = Job(ids, [self._sound.window(seek)], most, "file", constraint=rules)
        origin = replace(self._origin, arrived=time.perf_counter())
        options = AnswerOptions(
            include_stop=True, salt=origin.scope, continuing=True, origin=origin
        )
        fields = OneAnswer(temperature, 0 if measured else None)
        [answer] = await self._read(await generation.answer(job, fields, options))
        self.heard += len(ids)
        self.said += len(answer.token_ids)
        return answer
