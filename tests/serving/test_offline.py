"""The same model from a Python script, without a server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import ApplianceError
from appliance.offline import Appliance
from bench.reference import picture
from tests.checkpoints import WRITERS
from tests.serving.conftest import Server

ASK = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    folder = WRITERS["qwen2_vl"](tmp_path_factory.mktemp("offline") / "qwen2_vl")
    told = [f"model.path={folder}", "model.name=tiny", "model.max_len=512"]
    told.append("embeddings.serve=true")
    with Appliance("qwen2_vl", *told) as made:
        yield made


def text(body: dict) -> str:  # type: ignore[type-arg]
    return body["choices"][0]["message"]["content"]


def test_a_script_gets_what_a_client_of_the_server_gets(
    model: Appliance, tiny_qwen2_vl: Server
) -> None:
    fields = {"temperature": 0, "max_tokens": 12}
    served = tiny_qwen2_vl.client.chat.completions.create(model="tiny", messages=ASK, **fields)
    assert text(model.chat(ASK, **fields)) == served.choices[0].message.content


def test_a_stream_says_what_the_body_says(model: Appliance) -> None:
    fields = {"temperature": 0, "max_tokens": 12}
    chunks = list(model.stream(ASK, **fields))
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == text(
        model.chat(ASK, **fields)
    )


def test_leaving_a_stream_ends_the_answer(model: Appliance) -> None:
    stream = model.stream(ASK, max_tokens=400)
    next(stream)
    stream.close()
    for _ in range(200):
        if model._loader.client.stats.pages_used == 0:  # type: ignore[union-attr]
            break
        threading.Event().wait(0.05)
    assert model._loader.client.stats.pages_used == 0  # type: ignore[union-attr]


def test_vectors_of_texts_and_of_pictures(model: Appliance) -> None:
    def seen(seed: int) -> list[float]:
        parts = [{"type": "image", "image": picture(60, 60, seed)}]
        answer = model.embed(messages=[{"role": "user", "content": parts}])
        numbers: list[float] = answer["data"][0]["embedding"]
        return numbers

    texts = [one["embedding"] for one in model.embed(["one", "two", "one"])["data"]]
    assert texts[0] == pytest.approx(texts[2], abs=1e-5)
    assert texts[0] != pytest.approx(texts[1], abs=1e-3)
    assert seen(1) == pytest.approx(seen(1), abs=1e-5)
    assert seen(1) != pytest.approx(seen(2), abs=1e-3)
    with pytest.raises(ApplianceError) as refused:
        model.embed()
    assert (refused.value.status, refused.value.param) == (400, "input")


def test_pictures_are_given_as_they_are(model: Appliance) -> None:
    def ask(seed: int) -> list[int]:
        parts = [
            {"type": "image", "image": picture(60, 60, seed)},
            {"type": "text", "text": "What is this?"},
        ]
        messages = [{"role": "user", "content": parts}]
        answer = model.chat(messages, temperature=0, max_tokens=12, return_token_ids=True)
        ids: list[int] = answer["choices"][0]["token_ids"]
        return ids

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)


def test_a_refused_request_says_why_and_the_next_works(model: Appliance) -> None:
    with pytest.raises(ApplianceError) as refused:
        model.chat(ASK, temperature=3)
    assert (refused.value.status, refused.value.param) == (400, "temperature")
    assert model.complete("The", max_tokens=3)["usage"]["completion_tokens"] == 3


def test_two_models_can_be_loaded_and_closed(tmp_path: Path) -> None:
    folder = WRITERS["llama"](tmp_path / "llama")
    before = threading.active_count()
    for _ in range(2):
        with Appliance("smollm2", f"model.path={folder}", "model.max_len=256") as made:
            assert made.complete("The", max_tokens=2)["usage"]["completion_tokens"] == 2
    assert threading.active_count() <= before + 1
