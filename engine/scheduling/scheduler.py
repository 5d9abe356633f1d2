"""Who computes how many tokens in the next step."""

from __future__ import annotations

import math
import time
from array import array
from bisect import insort
from dataclasses import dataclass

from engine.scheduling.pace import GRAIN, Pace
from engine.scheduling.page_pool import PagePool
from engine.scheduling.sequence import Sequence, no_pages
from engine.scheduling.state_pages import StatePages

# Rows that are computed in the time in which a step reads all weights, about (SmolLM2, two cores).
# With r rows a step's token takes 1/r of that and a row's time, a draft only the latter: it has to
# be kept with a chance of r / (r + READING) to save what it takes.
READING = 12


@dataclass(slots=True, frozen=True)
class Slice:
    """Tokens `start`..`end` of a sequence, computed in one step.

    A `draft` is a token that is not the sequence's, but may come to stand at `start`; those of a
    sequence follow the slice of its last token, one each, so that attention does for each what it
    would do for that token alone. All keys of a step are stored before any is read.
    """

    sequence: Sequence
    start: int
    end: int
    draft: int | None = None

    @property
    def count(self) -> int:
        return self.end - self.start

    @property
    def samples(self) -> bool:
        """Whether the step yields this sequence's next token."""
        return self.last and self.draft is None and self.sequence.request.pooling is None

    @property
    def last(self) -> bool:
        """Whether nothing of the sequence is left to compute behind it."""
        return self.end == len(self.sequence.tokens)

    @property
    def pooled(self) -> range:
        """Which of its tokens' final hidden states are wanted, the first being 0."""
        match self.sequence.request.pooling:
            case "last":
                return range(self.count - 1, self.count) if self.last else range(0)
            case "cls":
                return range(1) if self.start == 0 else range(0)
            case "mean":
                return range(self.count)
        return range(0)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the logits of all its tokens are wanted."""
        return self.draft is None and self.sequence.wants_prompt_logprobs(self.start)


@dataclass(slots=True)
class Budget:
    """What is left of a step."""

    tokens: int
    images: int  # media tokens whose tower may run
    prompt_rows: int  # prompt tokens whose own log-probabilities may be asked for
    work: float = math.inf  # that prompts may be, where answers are under way
    prompts: bool = False  # whether the step has of prompts what it must have

    @property
    def for_prompts(self) -> bool:
        """Whether there may be more of prompts in it."""
        return self.tokens > 0 and (self.work >= GRAIN or not self.prompts)

    def take(self, item: Slice, work: float) -> None:
        """Take a slice off, so much `work` if it is of a prompt."""
        self.tokens -= item.count
        if work:
            self.work -= work
            self.prompts = True
        if item.start >= item.sequence.prompt_length:
            return
        self.images -= sum(rows for _, rows in item.sequence.entering(item.start, item.end))
        if item.wants_prompt_logprobs:
            self.prompt_rows -= item.count


class Scheduler:
    """Continuous batching under one token budget.

    Decoding sequences come first, one token each, so a long prompt never stops them; then prompts
    in progress, then waiting ones, in order of service, in chunks of what is left of the budget.
    While any sequence decodes, all prompts of a step together are no more work than `pace` allows,
    but for what cannot be cut: a grain of the first, or its span that sees both ways. When pages
    run out the last in order is preempted: its pages go back (and stay findable) and it
    waits to be computed again.

    With `draft_tokens` what is left after all of them goes to drafts of decoding sequences. The
    pages that these take go back as soon as it is known how many were kept (`settle`), so that no
    draft ever costs another sequence a page.
    """

    def __init__(
        self,
        pool: PagePool,
        page_size: int,
        max_tokens: int,
        max_sequences: int,
        max_prompt_rows: int,
        draft_tokens: int = 0,
        pace: Pace | None = None,
        states: StatePages | None = None,
    ) -> None:
        """`states` are the pages for what sequences attend to across; None: they do not."""
        self.pool = pool
        self.states = states
        self.page_size = page_size
        self.max_tokens = max_tokens
        self.max_sequences = max_sequences
        self.max_prompt_rows = max_prompt_rows
        self.draft_tokens = draft_tokens  # of one sequence in one step, at most
        self.pace = pace or Pace(None)
        self.running: list[Sequence] = []  # in order of service
        self.waiting: list[Sequence] = []  # in order of service
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=lambda other: other.rank)

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence, running or waiting, and give its pages back."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._release(sequence)

    def schedule(self) -> list[Slice]:
        """The slices of the next step; their pages are allocated. Empty only if nothing can run."""
        budget = Budget(self.max_tokens, self.max_tokens, self.max_prompt_rows)
        slices: list[Slice] = []
        preempted: set[Sequence] = set()

        decoding: list[Sequence] = []
        prefilling: list[Sequence] = []
        for sequence in self.running:
            remaining = sequence.remaining
            if remaining > 1:
                prefilling.append(sequence)
            elif remaining == 1 and not sequence.exhausted:
                budget.work = self.pace.allowed()
                budget.prompts = budget.work == 0
                if not sequence.awaits_token:
                    decoding.append(sequence)
        for sequence in decoding + prefilling:
            if budget.tokens == 0:
                break
            if sequence in preempted:
                continue  # for one before it
            end = self._next_end(sequence, budget)
            if end == sequence.computed:
                continue
            while not self._grow(sequence, end):
                victim = self.running[-1]
                preempted.add(victim)
                slices = [item for item in slices if item.sequence is not victim]
                self._preempt(victim)
                if victim is sequence:
                    break
            else:
                slices.append(Slice(sequence, sequence.computed, end))
                budget.take(slices[-1], self.work(slices[-1:]))

        position = 0
        while (
            not preempted
            and budget.for_prompts
            and position < len(self.waiting)
            and len(self.running) < self.max_sequences
        ):
            sequence = self.waiting[position]
            if sequence.constraint is not None and not sequence.constraint.ready:
                position += 1
                continue
            leader = sequence.leader
            if (
                leader is not None
                and leader.finish_reason is None
                and leader.computed < leader.prompt_length
            ):
                position += 1
                continue
            if not self._admit(sequence):
                break
            del self.waiting[position]
            insort(self.running, sequence, key=lambda other: other.rank)
            end = self._next_end(sequence, budget)
            if end == sequence.computed:
                continue
            if not self._grow(sequence, end):
                self._preempt(sequence)
                break
            slices.append(Slice(sequence, sequence.computed, end))
            budget.take(slices[-1], self.work(slices[-1:]))
        if self.draft_tokens and not preempted:
            rows = sum(item.count for item in slices)
            worthwhile = rows / (rows + READING)
            return [
                part for item in slices for part in (item, *self._drafts(item, budget, worthwhile))
            ]
        return slices

    def work(self, slices: list[Slice]) -> float:
        """What of slices is of prompts, as their pace counts it; 0 for tokens that are decoded."""
        return sum(
            self.pace.work(item.start, item.end)
            for item in slices
            if item.draft is None and (item.count > 1 or item.start < item.sequence.prompt_length)
        )

    def keep(self, sequence: Sequence) -> None:
        """Note that the next draft of a sequence is the token that came, so it is computed too."""
        sequence.computed += 1

    def settle(self, sequence: Sequence) -> None:
        """Give back the pages that a sequence took for drafts and none of which was kept."""
        held = self._pages_for(sequence.computed)
        if held < len(sequence.pages):
            self.pool.release(sequence.pages[held:])
            del sequence.pages[held:]
        self.publish(sequence)

    def computed(self, item: Slice) -> None:
        """Note that a slice's keys and values are in its pages; full pages become findable."""
        item.sequence.computed = item.end
        if self.states is not None:
            self.states.computed(item.sequence, item.end)
        self.publish(item.sequence)

    def publish(self, sequence: Sequence) -> None:
        """Make full pages of computed and known tokens findable."""
        if sequence.computed // self.page_size <= sequence.published:
            return  # no further page is full
        digests = sequence.block_digests(self.page_size)
        blocks = min(len(digests), sequence.computed // self.page_size)
        for block in range(sequence.published, blocks):
            self.pool.publish(sequence.pages[block], digests[block])
            sequence.published = block + 1

    def _admit(self, sequence: Sequence) -> bool:
        """Share the cached prefix, if the pages for the whole rest of the prompt are there too."""
        hits: list[int] = []
        if sequence.reuses_prefix:
            blocks = (
                len(sequence.tokens) - 1
            ) // self.page_size  # the last token's logits are needed
            hits = self.pool.match(sequence.block_digests(self.page_size)[:blocks])
        missing = self._pages_for(len(sequence.tokens)) - len(hits)
        if missing > self.pool.free - self.pool.idle(hits):
            return False
        if self.states is not None and not self.states.admit(sequence):
            return False
        self.pool.share(hits)
        sequence.pages = array("i", hits)
        sequence.computed = len(hits) * self.page_size
        sequence.published = len(hits)
        if not sequence.started:
            sequence.started, sequence.admitted = True, time.perf_counter()
            sequence.cached_tokens = sequence.computed
        return True

    def _next_end(self, sequence: Sequence, budget: Budget) -> int:
        """Where the next slice ends: within the budget, and at the pace of prompts if it is one.

        What is first of all prompts gets on, whatever it takes: by a grain, or by a span.
        """
        start, end = sequence.computed, self._chunk_end(sequence, budget, budget.tokens)
        if sequence.remaining == 1 or math.isinf(budget.work):
            return end
        tokens = self.pace.tokens(start, budget.work)
        if not budget.prompts:
            tokens = max(tokens, GRAIN)
        if start + tokens >= end:
            return end
        shorter = self._chunk_end(sequence, budget, tokens)
        if shorter == start and not budget.prompts:
            return min([end, *(last for first, last in sequence.spans if first <= start < last)])
        return shorter

    def _chunk_end(self, sequence: Sequence, budget: Budget, tokens: int) -> int:
        """Where a slice of that many tokens ends: before a media item too many.

        Tokens that see each other both ways need each other's keys, so a slice never ends inside
        such a span. It may begin in one, after a cached prefix: the pages before were computed with
        all of the span, whose item is part of their digests.
        """
        start, images = sequence.computed, budget.images
        if start >= sequence.prompt_length:
            return min(start + tokens, len(sequence.tokens))
        if sequence.wants_prompt_logprobs(start):
            tokens = min(tokens, budget.prompt_rows)
        end = min(start + tokens, len(sequence.tokens))
        for first, last in sequence.spans:
            if first < end < last:
                end = max(first, start)
        for first, rows in sequence.entering(start, end):
            if rows > images and images < self.max_tokens:
                return first
            images -= rows
        return end

    def _drafts(self, item: Slice, budget: Budget, worthwhile: float) -> list[Slice]:
        """What is proposed to come behind a slice, if it decodes and there is room.

        Each draft is a row of logits, for as many of which memory is planned as for those of
        prompts. The token behind the last one is still one that was asked for.
        """
        sequence, place = item.sequence, item.end
        most = min(
            self.draft_tokens,
            budget.tokens,
            budget.prompt_rows,
            sequence.sampling.max_tokens - sequence.generated - 1,
        )
        if most <= 0 or item.start < sequence.prompt_length or not item.last:
            return []
        draft = sequence.draft(most, worthwhile)
        if not self._grow(sequence, place + len(draft)):
            draft = draft[: len(sequence.pages) * self.page_size - place]
        budget.tokens -= len(draft)
        budget.prompt_rows -= len(draft)
        return [Slice(sequence, at, at + 1, token) for at, token in enumerate(draft, place)]

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _grow(self, sequence: Sequence, end: int) -> bool:
        missing = self._pages_for(end) - len(sequence.pages)
        if missing <= 0:
            return True
        pages = self.pool.allocate(missing)
        if pages is None:
            return False
        sequence.pages.extend(pages)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self.preemptions += 1
        self.add(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.pages)
        if self.states is not None:
            self.states.release(sequence)
        sequence.pages = no_pages()
        sequence.computed = sequence.published = 0
