"""Vectors through the launched endpoint, with the official client, against transformers' own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import openai
import pytest
import torch
import transformers

from bench.reference import Reference, picture, prompt_with_images
from tests.serving.conftest import Server, serving
from tests.serving.test_images import data_url

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "demo"
TEXTS = ["The quick brown fox.", "Two boats at dusk", "x", "One, two, three, four, five. " * 12]


def unit(vector: torch.Tensor) -> numpy.ndarray:
    return torch.nn.functional.normalize(vector, dim=0).numpy()


def check(found: list[float], expected: numpy.ndarray) -> None:
    assert numpy.dot(found, expected) > 0.9999
    assert numpy.abs(numpy.array(found) - expected).max() < 2e-5


def pooled(states: torch.Tensor, pooling: str) -> numpy.ndarray:
    return unit(states[-1] if pooling == "last" else states.mean(dim=0))


@pytest.fixture(scope="module")
def tiny_bert(checkpoint: Callable[[str], Path]) -> Iterator[Server]:
    told = [f"model.path={checkpoint('bert')}", "model.name=tiny", "model.max_len=128"]
    more = ["embeddings.serve=true", "embeddings.pooling=mean", "embeddings.dimensions=[32]"]
    with serving(*told, *more, "engine.threads=1") as server:
        yield server


@pytest.fixture(scope="module")
def texts_of_bert(checkpoint: Callable[[str], Path]) -> list[numpy.ndarray]:
    """By transformers' tokenizer and model, the mean of all states."""
    folder = checkpoint("bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        made = [tokenizer(text, return_tensors="pt", padding=False) for text in TEXTS]
        return [model(**one).last_hidden_state[0].mean(dim=0) for one in made]


def test_a_sentence_encoders_vectors_are_those_of_transformers(
    tiny_bert: Server, texts_of_bert: list[torch.Tensor]
) -> None:
    """The client asks for base64 unless it is told otherwise; both are the same numbers."""
    answer = tiny_bert.client.embeddings.create(model="tiny", input=TEXTS)
    for entry, expected in zip(answer.data, texts_of_bert, strict=True):
        check(entry.embedding, unit(expected))
    plain = tiny_bert.client.embeddings.create(model="tiny", input=TEXTS, encoding_format="float")
    for entry, other in zip(answer.data, plain.data, strict=True):
        assert entry.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(TEXTS) * 3
    short = tiny_bert.client.embeddings.create(model="tiny", input=TEXTS, dimensions=32)
    for entry, expected in zip(short.data, texts_of_bert, strict=True):
        check(entry.embedding, unit(expected[:32]))
        assert numpy.dot(entry.embedding, unit(expected)[:32]) < 0.99  # control: normed after


def test_an_encoder_says_what_it_serves_and_refuses_the_rest(tiny_bert: Server) -> None:
    client = tiny_bert.client
    card = client.models.list().data[0].model_dump()
    assert card["modalities"] == {"input": ["text"], "output": ["embedding"]}
    assert card["embeddings"]["dimensions"] == [32, 64]
    with pytest.raises(openai.NotFoundError, match="does not generate"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.NotFoundError, match="does not generate"):
        client.completions.create(model="tiny", prompt="a")
    with pytest.raises(openai.BadRequestError) as long:
        client.embeddings.create(model="tiny", input=["a", "two " * 200])
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input[1]")
    with pytest.raises(openai.BadRequestError, match=r"embeddings\.template"):
        client.embeddings.create(
            model="tiny", input=[], extra_body={"input": None, "messages": conversation()}
        )


def conversation(*images: object) -> list[dict[str, object]]:
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_model_that_sees_makes_vectors_of_texts_and_pictures(pooling: str) -> None:
    """In steps smaller than a prompt, and again from the prefix cache; it goes on to chat."""
    told = ["embeddings.serve=true", f"embeddings.pooling={pooling}", "model.dtype=float32"]
    with serving("recipe=demo", *told, "engine.threads=1", "engine.max_tokens_per_step=64") as demo:
        reference = Reference(DEMO)
        tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO)
        for _ in range(2):
            answer = demo.client.embeddings.create(model="demo", input=TEXTS)
            for entry, text in zip(answer.data, TEXTS, strict=True):
                states = reference.hidden_states(tokenizer(text).input_ids)
                check(entry.embedding, pooled(states, pooling))
        seen = {}
        for seed in (1, 2):
            image = picture(112, 84, seed)
            body = {"input": None, "messages": conversation(image)}
            for _ in range(2):
                answer = demo.client.embeddings.create(model="demo", input=[], extra_body=body)
            text = tokenizer.apply_chat_template(
                [
                    {
                        "role": "user",
                        "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}],
                    }
                ],
                tokenize=False,
            )
            before, after = text.split("<|image_pad|>")
            ids = [tokenizer(part).input_ids for part in (before, after)]
            tokens, media = prompt_with_images(DEMO, [ids[0], image, ids[1]])
            states = reference.hidden_states(tokens, media)
            check(answer.data[0].embedding, pooled(states, pooling))
            assert answer.usage.prompt_tokens == len(tokens)
            seen[seed] = answer.data[0].embedding
        assert numpy.dot(seen[1], seen[2]) < 0.9999  # control: another picture shows
        told = demo.client.chat.completions.create(
            model="demo", messages=conversation(picture(112, 84, 1)), max_tokens=4
        )
        assert told.choices[0].message.content


def test_a_template_of_the_recipe_is_what_texts_are_put_into(tmp_path: Path) -> None:
    template = tmp_path / "retrieval.jinja"
    template.write_text(
        "{% for message in messages %}Query: {% if message.content is string %}"
        "{{ message.content }}{% else %}{% for part in message.content %}"
        "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
        "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}<|im_end|>"
    )
    told = ["embeddings.serve=true", f"embeddings.template={template}", "model.dtype=float32"]
    with serving("recipe=demo", *told, "engine.threads=1") as demo:
        reference, tokenizer = (
            Reference(DEMO),
            transformers.AutoTokenizer.from_pretrained(DEMO),
        )
        asked = [{"input": "two boats"}, {"messages": [{"role": "user", "content": "two boats"}]}]
        expected = reference.hidden_states(tokenizer("Query: two boats<|im_end|>").input_ids)[-1]
        bare = reference.hidden_states(tokenizer("two boats").input_ids)[-1]
        for body in asked:
            answer = demo.client.embeddings.create(
                model="demo", input=[], extra_body={"input": None, **body}
            )
            check(answer.data[0].embedding, unit(expected))
            assert numpy.dot(answer.data[0].embedding, unit(bare)) < 0.99


def test_a_rerankers_scores_are_those_of_transformers(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("bert_reranker")
    told = [f"model.path={folder}", "model.name=tiny", "embeddings.rerank=true", "engine.threads=1"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        made = [tokenizer("How many birds?", text, return_tensors="pt") for text in TEXTS]
        expected = [torch.sigmoid(model(**one).logits[0, 0]).item() for one in made]
    with serving(*told) as server:
        body = {"model": "tiny", "query": "How many birds?", "documents": TEXTS}
        ranked = server.client.post("/rerank", body=body, cast_to=object)["results"]
        assert [one["index"] for one in ranked] == sorted(
            range(len(TEXTS)), key=lambda index: -expected[index]
        )
        pairs = {"model": "tiny", "text_1": "How many birds?", "text_2": TEXTS}
        scored = server.client.post("/score", body=pairs, cast_to=object)["data"]
        assert [one["score"] for one in scored] == pytest.approx(expected, abs=1e-5)
        assert max(expected) - min(expected) > 1e-3
        card = server.client.models.list().data[0].model_dump()
        assert card["modalities"]["output"] == ["score"]
        with pytest.raises(openai.NotFoundError, match="scores texts"):
            server.client.completions.create(model="tiny", prompt="a")
        with pytest.raises(openai.NotFoundError, match="no embeddings"):
            server.client.embeddings.create(model="tiny", input="a")
