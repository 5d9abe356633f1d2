"""Log-probabilities of a plain completion's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from appliance.api.replies import FLOOR
from appliance.prompt.tokenizer import Tokenizer
from engine.request import TokenLogprob


class CompletionLogprobs:
    """`choices[].logprobs` of plain completions, with offsets that go on from chunk to chunk."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offset = 0

    def render(self, tokens: Sequence[TokenLogprob | None], ids: Sequence[int]) -> dict[str, Any]:
        """Parallel lists for `tokens`; None stands for the first token of a prompt."""
        texts = [self._text(token_id) for token_id in ids]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [token and max(token.logprob, FLOOR) for token in tokens],
            "top_logprobs": [
                token and {self._text(key): max(value, FLOOR) for key, value in token.top}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _text(self, token_id: int) -> str:
        return self._tokenizer.token_bytes(token_id).decode(errors="replace")
