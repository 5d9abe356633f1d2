"""`POST /rerank` and `POST /score`, in the shapes of Jina's API and of vLLM's."""

from __future__ import annotations

import secrets
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from appliance.api.accept import Accepted, accept, told
from appliance.api.fields.unbuilt import UNBUILT_SCORE
from appliance.api.http.responses import json_response
from appliance.api.replies import created, whole
from appliance.api.rerank.request import RerankRequest, ScoreRequest
from appliance.api.usage import usage
from appliance.service import Service


class Rerank:
    """Scores pairs of texts."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def rerank(self, request: Request) -> Response:
        """The documents that answer a question, best first."""
        accepted = await accept(request, self._service, RerankRequest, UNBUILT_SCORE)
        fields = accepted.fields
        scores, spent = await self._scores(request, accepted)
        best = sorted(range(len(scores)), key=lambda index: -scores[index])
        results = []
        for index in best[: fields.top_n or len(best)]:
            result: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
            if fields.return_documents:
                result["document"] = {"text": fields.documents[index]}
            results.append(result)
        answer = {
            "id": f"rerank-{secrets.token_hex(12)}",
            "model": self._service.model,
            "results": results,
            "usage": spent,
        }
        return json_response(answer, told(request, self._service, accepted.ignored))

    async def score(self, request: Request) -> Response:
        """The score of each pair, in the order sent."""
        accepted = await accept(request, self._service, ScoreRequest, UNBUILT_SCORE)
        scores, spent = await self._scores(request, accepted)
        answer = {
            "id": f"score-{secrets.token_hex(12)}",
            "object": "list",
            "created": created(),
            "model": self._service.model,
            "data": [
                {"index": index, "object": "score", "score": score}
                for index, score in enumerate(scores)
            ],
            "usage": spent,
        }
        return json_response(answer, told(request, self._service, accepted.ignored))

    async def _scores(
        self,
        request: Request,
        accepted: Accepted[RerankRequest] | Accepted[ScoreRequest],
    ) -> tuple[list[float], dict[str, Any]]:
        generation = self._service.generator()
        settings, fields = generation.score_settings(), accepted.fields
        options = fields.answer_options(accepted.origin)
        answers = await generation.score(fields.pairs, fields, options)
        scores = []
        for delta in await whole(request, answers):
            assert delta.vector is not None
            scores.append(settings.finished(float(delta.vector[0])))
        spent = usage(answers)
        del spent["completion_tokens"]
        return scores, spent
