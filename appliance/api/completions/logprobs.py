"""Log-probabilities of a plain completion's tokens."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.api.http.responses import encode
from appliance.api.replies import FLOOR
from appliance.prompt.tokenizer import Tokenizer
from engine.request import TokenLogprob


class CompletionLogprobs:
    """`choices[].logprobs` of plain completions, with offsets that go on from chunk to chunk."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, int]] = {}
        self._offset = 0

    def render(self, tokens: Sequence[TokenLogprob | None], ids: Sequence[int]) -> str:
        """Parallel lists for `tokens`, as JSON; None stands for the first token of a prompt."""
        texts = [self._text(token_id) for token_id in ids]
        offsets = []
        for _, length in texts:
            offsets.append(str(self._offset))
            self._offset += length
        own = ["null" if token is None else _number(token.logprob) for token in tokens]
        return (
            f'{{"tokens":[{",".join(text for text, _ in texts)}],'
            f'"token_logprobs":[{",".join(own)}],'
            f'"top_logprobs":[{",".join(map(self._top, tokens))}],'
            f'"text_offset":[{",".join(offsets)}]}}'
        )

    def _top(self, token: TokenLogprob | None) -> str:
        """The best at one place by their texts; of those that are written alike the last counts."""
        if token is None:
            return "null"
        best = {self._text(token_id)[0]: _number(value) for token_id, value in token.top}
        return "{" + ",".join(f"{text}:{value}" for text, value in best.items()) + "}"

    def _text(self, token_id: int) -> tuple[str, int]:
        """A token as JSON, and its length as text."""
        known = self._known.get(token_id)
        if known is None:
            text = self._tokenizer.token_bytes(token_id).decode(errors="replace")
            known = self._known[token_id] = (encode(text), len(text))
        return known


def _number(logprob: float) -> str:
    return repr(max(FLOOR, logprob))
