"""A request's stages as a header of its answer (W3C Server Timing)."""

from __future__ import annotations

from appliance.generation.answers import Answers
from appliance.generation.stages import STAGES, Stages


def server_timing(answers: Answers) -> dict[str, str]:
    """The header that tells the stages so far; none before there are any."""
    told = [f"{stage};dur={ms:g}" for stage, ms in milliseconds(answers.stages).items()]
    return {"Server-Timing": ", ".join(told)} if told else {}


def milliseconds(stages: Stages) -> dict[str, float]:
    """Time by stage, in the order in which a request goes through them."""
    seconds = stages.seconds
    return {stage: round(seconds[stage] * 1000, 3) for stage in STAGES if stage in seconds}
