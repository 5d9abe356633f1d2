"""The fields of requests whose answers are vectors or scores."""

from __future__ import annotations

from appliance.api.fields.request import RequestFields
from appliance.generation.answers import AnswerLength, AnswerOptions, Origin
from appliance.generation.sampling_defaults import SamplingDefaults
from engine.request import NO_TOKENS, SamplingOptions


class PooledFields(RequestFields):
    """Of answers that have no tokens nothing is chosen."""

    @property
    def answer_length(self) -> AnswerLength:
        return AnswerLength(0, "input")

    def sampling(
        self, max_tokens: int, vocab_size: int, defaults: SamplingDefaults
    ) -> SamplingOptions:
        return NO_TOKENS

    def answer_options(self, origin: Origin) -> AnswerOptions:
        """How soon, and for whom."""
        return AnswerOptions(priority=self.priority, salt=self.salt(origin.scope), origin=origin)
