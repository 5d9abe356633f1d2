"""Log-probabilities of a chat's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from appliance.api.replies import FLOOR
from appliance.prompt.tokenizer import Tokenizer
from engine.request import TokenLogprob


def chat_logprobs(tokens: Sequence[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any]:
    """`choices[].logprobs` of chat: token, log-probability, bytes, and the best at each place."""
    return {
        "content": [
            {
                **_entry(token.token_id, token.logprob, tokenizer),
                "top_logprobs": [
                    _entry(token_id, logprob, tokenizer) for token_id, logprob in token.top
                ],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _entry(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    return {
        "token": data.decode(errors="replace"),
        "logprob": max(logprob, FLOOR),
        "bytes": list(data),
    }
