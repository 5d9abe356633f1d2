"""How much of prompts a step may compute while answers are under way, by what steps have taken."""

from __future__ import annotations

import math
from dataclasses import dataclass

GRAIN = 16  # tokens that a prompt is cut by: a step has so many of one, whatever they take
# Attention to prompts takes so many times as long as products of as many multiplications (SmolLM2,
# two cores). It need not be right: what a prompt's further tokens take corrects it.
ATTENTION = 3.0
DAMPING = 0.3  # of what a step tells, beside those before it
EVERY = 16  # steps, of which one has no prompts, or nobody would know what it takes without
# Prompts may take so many times as long as the rest of a step: a model that takes 0.2 s for a token
# cannot have its prompts in shares of 0.1 s without most of the time going into few answers.
SHARE = 3.0
OUTLIER = 4.0  # a step that took more times what was expected tells no more than this


@dataclass(slots=True)
class Pace:
    """What prompts may take of a step, in units of work that a step's time is measured by.

    A unit is a prompt's token without attention; `turning` is the position at which attending to
    those before takes as long again. What a unit takes, and what a step takes without any, are
    estimates that follow the steps. One of answers alone tells the latter. One with both that took
    twice what was expected makes both dearer, by their shares in it, as others' work on the same
    cores does. The same times give the same pace.

    `seconds` is what prompts may take of a step, if that is more than `SHARE` times what it takes
    without them; None: whatever they take.
    """

    seconds: float | None
    turning: float = math.inf
    unit: float = 0.0  # seconds; 0: nothing is known yet
    step: float = 0.0  # seconds of a step without prompts
    steps: int = 0  # that were measured
    since: int = 0  # steps since the last one without prompts

    def allowed(self) -> float:
        """Units of work that a step with answers may have; 0: it is one that is to tell of them."""
        if self.seconds is None or self.unit == 0.0:
            return math.inf
        if self.step == 0.0 or self.since >= EVERY:
            return 0.0
        return max(self.seconds, SHARE * self.step) / self.unit

    def work(self, start: int, end: int) -> float:
        """Units that tokens `start`..`end` of a sequence are."""
        return (end - start) * (1 + (start + end) / 2 / self.turning)

    def tokens(self, start: int, work: float) -> int:
        """How many tokens from `start` on are so much work, in whole grains."""
        if math.isinf(work) or work <= 0:
            return 0 if work <= 0 else 1 << 60
        each = 1 + start / self.turning  # work = n * each + n² / (2 * turning), solved for n
        count = 2 * work / (each + math.sqrt(each * each + 2 * work / self.turning))
        return int(count) // GRAIN * GRAIN

    def took(self, work: float, seconds: float) -> None:
        """Note what a step with so much of prompts took."""
        damping = max(DAMPING, 1 / (self.steps + 1))
        self.steps += 1
        if work == 0:
            longest = OUTLIER * self.step or seconds
            damping = min(1.0, DAMPING * (self.since + 1))
            self.step += damping * (min(seconds, longest) - self.step) if self.step else seconds
            self.since = 0
            return
        self.since += 1
        if self.unit == 0.0:
            self.unit = max(seconds - self.step, seconds / 2) / work
            return
        expected = self.step + self.unit * work
        ratio = min(max(seconds / expected, 1 / OUTLIER), OUTLIER)
        share = self.step / expected
        self.step *= 1 + damping * share * (ratio - 1)
        self.unit *= 1 + damping * (1 - share) * (ratio - 1)


def turning_point(
    hidden: int, intermediate: int, heads: int, kv_heads: int, head_dim: int
) -> float:
    """The position at which attention takes as long as a layer's products, about."""
    products = hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * intermediate
    return products / (2 * heads * head_dim * ATTENTION)
