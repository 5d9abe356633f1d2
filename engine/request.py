"""What the engine is asked to do, and what it answers: plain data that crosses a process border."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from engine.device.shared_tensors import SharedTensors

if TYPE_CHECKING:
    import numpy
    import torch

    from engine.sampling.constraint import ConstraintSource

GREEDY_BELOW = 1e-5  # logits divided by less leave float32

Pooling = Literal["last", "cls", "mean"]  # of the prompt's tokens: the last, the first, all


@dataclass(slots=True, frozen=True)
class SamplingOptions:
    """How the next token is chosen and when a sequence ends.

    Temperature 0 is greedy, and so is any below GREEDY_BELOW. `top_k` 0, `top_p` 1 and `min_p` 0
    switch the filter off. Penalties are OpenAI's (`frequency`, `presence`: counted over generated
    tokens) and CTRL's (`repetition`: prompt and output).
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none; k: the chosen token's and the k best
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < GREEDY_BELOW:
            object.__setattr__(self, "temperature", 0.0)


NO_TOKENS = SamplingOptions(max_tokens=0)


@dataclass(slots=True, frozen=True)
class MediaItem:
    """One image, video or sound of a prompt.

    `start` is the index of its first placeholder in the prompt, `length` the number of
    placeholders, and `digest` identifies content and processing: equal digests must mean equal
    embeddings. `tensors` are what the family's tower takes, or `embeds` `[encoded, hidden]` in its
    place.

    An item that the decoder attends to across has no placeholders: its `states` stand beside the
    tokens, and are seen by those from `start` on, up to the next such item.
    """

    modality: str
    digest: bytes
    start: int
    length: int
    tensors: Mapping[str, torch.Tensor]
    states: int = 0

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def encoded(self) -> int:
        """Rows that its tower gives."""
        return self.states or self.length

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.modality, self.digest, self.start, self.length)
        if isinstance(self.tensors, SharedTensors):
            return MediaItem, (*fields, self.tensors, self.states)
        # torch would pass its storages by file descriptor; plain arrays go through the pipe as they
        # are
        arrays = {name: tensor.numpy() for name, tensor in self.tensors.items()}
        return _media_item, (*fields, arrays, self.states)


def _media_item(
    modality: str,
    digest: bytes,
    start: int,
    length: int,
    arrays: dict[str, numpy.ndarray],
    states: int,
) -> MediaItem:
    import torch  # only where media arrive

    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return MediaItem(modality, digest, start, length, tensors, states)


@dataclass(slots=True, frozen=True)
class Alignment:
    """Attention across that is wanted of a prompt, in place of what it is pooled to.

    That of `heads`, each (layer, head), for the tokens from `first` on to the first `states` of
    its item, smoothed over `width` of them.
    """

    heads: tuple[tuple[int, int], ...]
    first: int
    states: int
    width: int = 7


@dataclass(slots=True, frozen=True)
class Request:
    """A prompt and the `n` answers wanted. Lower `priority` runs first; `salt` splits caches.

    An answer is tokens, to which a `constraint` may apply, or with `pooling` one vector made of the
    decoder's final hidden states of the prompt. A prompt of two texts has the second from token
    `second` on, where a model tells them apart.
    """

    id: str
    prompt_ids: list[int]
    sampling: SamplingOptions = NO_TOKENS
    media: list[MediaItem] = field(default_factory=list)
    n: int = 1
    priority: int = 0
    salt: bytes = b""
    constraint: ConstraintSource | None = None
    pooling: Pooling | None = None
    second: int | None = None
    alignment: Alignment | None = None  # with pooling, whose vector is `[tokens, states]` then

    @property
    def shared(self) -> list[SharedTensors]:
        """Memory that travels beside the request, each piece once."""
        pieces = {id(item.tensors): item.tensors for item in self.media}
        return [tensors for tensors in pieces.values() if isinstance(tensors, SharedTensors)]


class TokenLogprob(NamedTuple):  # tuples are unpickled without a call in Python
    """Log-probability of one token and of the most likely ones at its place, best first."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(slots=True, frozen=True)
class Output:
    """What one step added to answer `index` of a request.

    `finish_reason` is None while it goes on; `stop` (end token or stop token, which is the last of
    `token_ids`), `length`, `abort`, or `error` with a message in our own words in `error`.
    """

    request_id: str
    index: int
    token_ids: list[int]
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = (
        None  # once, with the first token; [0] is None
    )
    cached_tokens: int = 0  # prompt tokens that came from the prefix cache
    error: str | None = None
    vector: numpy.ndarray | None = None  # [hidden], float32: the whole answer, if asked for
    # with the first token: when its sequence left the queue, by time.perf_counter(), which is one
    # clock for all processes of a machine where Python takes CLOCK_MONOTONIC for it
    admitted: float | None = field(default=None, compare=False)
