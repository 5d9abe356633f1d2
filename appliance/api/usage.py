"""What a request cost, as OpenAI counts it."""

from __future__ import annotations

from typing import Any

from appliance.generation.answers import Answers


def usage(answers: Answers, generated: int | None = None) -> dict[str, Any]:
    """The `usage` object; `generated` overrides the tokens counted so far."""
    completion = answers.generated if generated is None else generated
    details = {"cached_tokens": sum(prompt.cached_tokens for prompt in answers.prompts)}
    media: dict[str, int] = {}
    for prompt in answers.prompts:
        for modality, tokens in prompt.media_tokens.items():
            media[modality] = media.get(modality, 0) + tokens
    if media:
        details["text_tokens"] = answers.prompt_tokens - sum(media.values())
        details |= {f"{modality}_tokens": tokens for modality, tokens in media.items()}
    told: dict[str, Any] = {
        "prompt_tokens": answers.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": answers.prompt_tokens + completion,
        "prompt_tokens_details": details,
    }
    if answers.thought_tokens:
        told["completion_tokens_details"] = {"reasoning_tokens": answers.thought_tokens}
    return told
