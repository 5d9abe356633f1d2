"""Log-probabilities on their way from logits to answers."""

from __future__ import annotations

import torch

from engine.device.device import Device
from engine.request import TokenLogprob


class LogprobRows:
    """Log-probabilities of the model itself, before any adjustment, for rows `[rows, vocabulary]`.

    `chosen` `[rows]` are the tokens at their places, `most` how many of the best ones any row
    wants beside its own. The host waits for them only when `entries` is asked for.
    """

    def __init__(
        self, logits: torch.Tensor, chosen: torch.Tensor, most: int, device: Device
    ) -> None:
        self.count = len(chosen)
        logprobs = logits.log_softmax(dim=-1)
        own = logprobs.gather(1, chosen.long()[:, None])[:, 0]
        values, tokens = logprobs.topk(max(most, 1), dim=-1)
        self._copies = [device.download(part) for part in (chosen, own, values, tokens)]

    def entries(self, tops: list[int]) -> list[TokenLogprob]:
        """One for each row, with as many of the best tokens as `tops` says."""
        chosen, own, values, tokens = (copy.tolist() for copy in self._copies)
        return [
            TokenLogprob(token, logprob, list(zip(best[:top], value[:top], strict=True)))
            for token, logprob, top, best, value in zip(
                chosen, own, tops, tokens, values, strict=True
            )
        ]
