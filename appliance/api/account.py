"""What an answer ends with: its cost, and where its time went."""

from __future__ import annotations

from typing import Any

from appliance.api.http.server_timing import milliseconds
from appliance.api.usage import usage
from appliance.generation.answers import Answers


def account(answers: Answers, *, include_usage: bool = True) -> dict[str, Any]:
    """`usage`, and `timings` in milliseconds where the request asked for them."""
    told: dict[str, Any] = {"usage": usage(answers)} if include_usage else {}
    if answers.timed:
        stages = milliseconds(answers.stages)
        told["timings"] = {f"{stage}_ms": ms for stage, ms in stages.items()}
        told["timings"]["total_ms"] = round(sum(stages.values()), 3)
    return told
