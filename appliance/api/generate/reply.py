"""What `/generate` answers, whole or as a stream that tells all of each answer again and again."""

from __future__ import annotations

import time
from typing import Any

from typing_extensions import TypedDict

from appliance.api.http.responses import encode
from appliance.api.openai_events import DONE
from appliance.errors import ApplianceError
from appliance.generation.answers import Answers, Delta


class MetaInfo(TypedDict):
    """How an answer ended (`{"type": "stop"}`, or `length` with its number), and what it cost."""

    id: str
    finish_reason: dict[str, Any] | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    e2e_latency: float  # seconds


class Generated(TypedDict):
    """An answer, or as much of it as there is."""

    text: str
    output_ids: list[int]
    meta_info: MetaInfo


class GenerateEvents:
    """Events of a stream, each an answer so far."""

    def __init__(self, answers: Answers, request: str, begun: float) -> None:
        """`request` is the client's name for it, `begun` when it came, by time.perf_counter()."""
        self._answers = answers
        self._request = request
        self._begun = begun
        self._so_far: dict[int, Delta] = {}

    def opening(self) -> bytes:
        return b""

    def deltas(self, deltas: list[Delta]) -> bytes:
        return "".join(self._event(delta) for delta in deltas).encode()

    def closing(self) -> bytes:
        return DONE.encode()

    def failure(self, fault: ApplianceError) -> bytes:
        return f"data: {encode(fault.body())}\n\n{DONE}".encode()

    def generated(self, delta: Delta) -> Generated:
        """An answer that `delta` is all of."""
        count, prompt = len(delta.token_ids), self._answers.prompts[delta.index // self._answers.n]
        finish: dict[str, Any] | None = None
        if delta.finish_reason is not None:
            finish = {"type": delta.finish_reason}
            if delta.finish_reason == "length":
                finish["length"] = count
        several = self._answers.total > 1
        return {
            "text": delta.text,
            "output_ids": delta.token_ids,
            "meta_info": {
                "id": f"{self._request}-{delta.index}" if several else self._request,
                "finish_reason": finish,
                "prompt_tokens": len(prompt.token_ids),
                "completion_tokens": count,
                "cached_tokens": prompt.cached_tokens,
                "e2e_latency": round(time.perf_counter() - self._begun, 6),
            },
        }

    def _event(self, delta: Delta) -> str:
        known = self._so_far.get(delta.index)
        if known is None:
            known = self._so_far[delta.index] = Delta(delta.index)
        known.add(delta)
        told: dict[str, Any] = {**self.generated(known)}
        if self._answers.total > 1:
            told["index"] = delta.index
        return f"data: {encode(told)}\n\n"
