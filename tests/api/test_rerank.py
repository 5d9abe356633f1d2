"""Scores of pairs of texts through the endpoint, of an engine that plays them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest

from appliance.generation.scores import IDENTITY, ScoreSettings
from engine.request import Output, Request
from tests.api.conftest import MAX_LEN, Kitchen
from tests.api.fake_engine import Step

pytestmark = pytest.mark.anyio
Cook = Callable[..., Kitchen]

RERANKS = "embeddings.rerank=true"
DOCUMENTS = ["one", "two three four five", "two three"]


def by_length(request: Request) -> Iterator[Step]:
    logit = numpy.array([len(request.prompt_ids) / 10], dtype=numpy.float32)
    yield Output(request.id, 0, [], "stop", vector=logit)


def sigmoid(request: Request) -> float:
    return 1 / (1 + math.exp(-len(request.prompt_ids) / 10))


async def ask(kitchen: Kitchen, path: str, **fields: Any) -> Any:
    return await kitchen.client.ask("POST", path, {"model": "tiny", **fields})


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
async def test_documents_come_best_first(cook: Cook, path: str) -> None:
    kitchen = cook(by_length, RERANKS)
    reply = await ask(kitchen, path, query="a", documents=[*DOCUMENTS[:2], {"text": "two three"}])
    assert reply.status == 200, reply.body
    scores = [sigmoid(request) for request in kitchen.engine.requests]
    assert {request.pooling for request in kitchen.engine.requests} == {"cls"}
    results = reply.json["results"]
    assert [one["index"] for one in results] == [1, 2, 0]
    for one in results:
        assert one["relevance_score"] == pytest.approx(scores[one["index"]], abs=1e-6)
        assert one["document"] == {"text": DOCUMENTS[one["index"]]}
    assert reply.json["usage"]["total_tokens"] == sum(
        len(request.prompt_ids) for request in kitchen.engine.requests
    )
    fewer = await ask(
        kitchen, path, query="a", documents=DOCUMENTS, top_n=2, return_documents=False
    )
    assert [sorted(one) for one in fewer.json["results"]] == [["index", "relevance_score"]] * 2


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    ("first", "second", "count"),
    [("a", "b", 1), ("a", ["b", "c"], 2), (["a"], ["b", "c"], 2), (["a", "b"], ["c", "d"], 2)],
)
async def test_scores_come_in_the_order_sent(
    cook: Cook, path: str, first: Any, second: Any, count: int
) -> None:
    kitchen = cook(by_length, RERANKS)
    reply = await ask(kitchen, path, text_1=first, text_2=second)
    data = reply.json["data"]
    assert [one["index"] for one in data] == list(range(count))
    for one, request in zip(data, kitchen.engine.requests, strict=True):
        assert one["score"] == pytest.approx(sigmoid(request), abs=1e-6)


WRONG = [
    ("/rerank", {"documents": ["a"]}, "query"),
    ("/rerank", {"query": 5, "documents": ["a"]}, "query"),
    ("/rerank", {"query": ["a"], "documents": ["a"]}, "query"),
    ("/rerank", {"query": "a"}, "documents"),
    ("/rerank", {"query": "a", "documents": []}, "documents"),
    ("/rerank", {"query": "a", "documents": "b"}, "documents"),
    ("/rerank", {"query": "a", "documents": ["b", 5]}, "documents[1]"),
    ("/rerank", {"query": "a", "documents": ["b", {"text": 5}]}, "documents[1].text"),
    ("/rerank", {"query": "a", "documents": ["b", {"title": "c"}]}, "documents[1].text"),
    ("/rerank", {"query": "a", "documents": ["b"] * 2049}, "documents"),
    ("/rerank", {"query": "a", "documents": ["b", "c " * MAX_LEN]}, "documents[1]"),
    ("/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
    ("/rerank", {"query": "a", "documents": ["b"], "return_documents": 1}, "return_documents"),
    (
        "/rerank",
        {"query": "a", "documents": ["b"], "truncate_prompt_tokens": 5},
        "truncate_prompt_tokens",
    ),
    ("/rerank", {"query": "\ud800", "documents": ["b"]}, "query"),
    ("/score", {"text_1": "a"}, "text_2"),
    ("/score", {"text_2": "a"}, "text_1"),
    ("/score", {"text_1": 5, "text_2": "a"}, "text_1"),
    ("/score", {"text_1": [], "text_2": "a"}, "text_1"),
    ("/score", {"text_1": ["a", 5], "text_2": ["a", "b"]}, "text_1[1]"),
    ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
    ("/score", {"text_1": ["a", "b"], "text_2": "c"}, "text_1"),
    ("/score", {"text_1": "a", "text_2": ["b", "c " * MAX_LEN]}, "text_2[1]"),
    ("/score", {"text_1": "a", "text_2": "b", "priority": 5000000000}, "priority"),
]


@pytest.mark.parametrize(("path", "fields", "param"), WRONG)
async def test_what_is_wrong_is_named(
    cook: Cook, path: str, fields: dict[str, Any], param: str
) -> None:
    kitchen = cook(by_length, RERANKS)
    reply = await ask(kitchen, path, **fields)
    assert (reply.status, reply.error["param"]) == (400, param), reply.body
    assert not kitchen.engine.requests


async def test_a_model_that_scores_nothing_says_so(cook: Cook) -> None:
    kitchen = cook(by_length, "embeddings.serve=true")
    for path, fields in (
        ("/rerank", {"query": "a", "documents": ["b"]}),
        ("/score", {"text_1": "a", "text_2": "b"}),
    ):
        reply = await ask(kitchen, path, **fields)
        assert (reply.status, reply.error["param"]) == (404, "model")


class Configured:
    def __init__(self, **config: Any) -> None:
        self.config = config


def test_what_a_score_is_is_the_checkpoints_to_say() -> None:
    one = {"id2label": {"0": "LABEL_0"}}
    assert ScoreSettings.of(Configured(**one)).finished(0.0) == 0.5
    plain = one | {"sentence_transformers": {"activation_fn": IDENTITY}}
    assert ScoreSettings.of(Configured(**plain)).finished(-7.5) == -7.5
    assert ScoreSettings().finished(-1e4) == 0.0
    assert ScoreSettings().finished(1e4) == 1.0
    for wrong in ({}, {"num_labels": 3}, one | {"sbert_ce_default_activation_function": "os.x"}):
        with pytest.raises(ValueError, match=r"labels|activation_fn"):
            ScoreSettings.of(Configured(**wrong))
