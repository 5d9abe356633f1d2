"""Where in a sound each token is said, as far as attention tells."""

from __future__ import annotations

import torch

from engine.request import Alignment


class AlignedTokens:
    """Gathers a prompt's attention to states, slice by slice, as the steps compute them.

    What is made of it is that of openai/whisper (timing.py) and of transformers'
    `_extract_token_timestamps`, up to the search for a path.
    """

    def __init__(self, wanted: Alignment) -> None:
        self._wanted = wanted
        self._parts: dict[int, torch.Tensor] = {}  # by the token that a slice begins at

    def add(self, start: int, weights: torch.Tensor) -> None:
        """The weights `[heads, tokens, states]` of a slice."""
        self._parts[start] = weights

    def vector(self) -> torch.Tensor:
        """How much more than others each token from the first on attends, `[tokens, states]`.

        Weights are normed over tokens, smoothed over time, and averaged over heads.
        """
        wanted = self._wanted
        whole = torch.cat([self._parts[start] for start in sorted(self._parts)], dim=1)
        whole = whole[:, wanted.first :, : wanted.states]
        deviation, mean = torch.std_mean(whole, dim=1, keepdim=True, correction=0)
        return _smoothed((whole - mean) / deviation, wanted.width).mean(dim=0)


def _smoothed(weights: torch.Tensor, width: int) -> torch.Tensor:
    """The median of `width` neighbours in time, mirrored at the ends."""
    side = width // 2
    if weights.shape[-1] <= side:
        return weights
    around = torch.nn.functional.pad(weights, (side, side), mode="reflect")
    return around.unfold(-1, width, 1).sort(dim=-1).values[..., side]
