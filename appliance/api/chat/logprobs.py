"""Log-probabilities of a chat's tokens."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.api.http.responses import encode
from appliance.api.replies import FLOOR
from appliance.prompt.tokenizer import Tokenizer
from engine.request import TokenLogprob


class ChatLogprobs:
    """`choices[].logprobs` of a chat: token, log-probability, bytes, and the best at each place.

    As JSON at once: there may be a million of them, of few tokens, and each is put together of
    parts that are known.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def render(self, tokens: Iterable[TokenLogprob]) -> str:
        """The object, as JSON."""
        content = ",".join(map(self._place, tokens))
        return f'{{"content":[{content}],"refusal":null}}'

    def _place(self, token: TokenLogprob) -> str:
        own = self._begun(token.token_id, token.logprob)
        top = ",".join(self._begun(token_id, logprob) + "}" for token_id, logprob in token.top)
        return f'{own},"top_logprobs":[{top}]}}'

    def _begun(self, token_id: int, logprob: float) -> str:
        """An object without its end."""
        known = self._known.get(token_id)
        if known is None:
            data = self._tokenizer.token_bytes(token_id)
            fields = {"token": data.decode(errors="replace"), "bytes": list(data)}
            known = self._known[token_id] = encode(fields)[:-1] + ',"logprob":'
        return f"{known}{max(FLOOR, logprob)!r}"
