"""Sounds through the launched endpoint, with the official client."""

from __future__ import annotations

import base64
import io
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import soundfile

from appliance.prompt.build import build_chat
from appliance.prompt.template import ChatTemplate
from appliance.prompt.tokenizer import Tokenizer
from engine.models.end_tokens import end_tokens
from engine.models.registry import family_for
from tests.engine.models.sounds import RATE, ComposedUltravox, Samples, digest, sound, sound_item
from tests.serving.conftest import Server, serving

TEXT = "What do you hear?"
SHORT, LONG = sound(9_000, 1), sound(40_000, 2)


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("ultravox")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    told = [f"model.path={folder}", "model.name=tiny", "model.max_len=1024", "engine.threads=1"]
    with serving(*told, "media.audio.limit=2", "media.audio.max_seconds=4") as server:
        yield server


def encoded(samples: Samples, form: str = "WAV", subtype: str = "FLOAT") -> str:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, subtype, format=form)
    return base64.b64encode(file.getvalue()).decode()


def input_audio(samples: Samples) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": encoded(samples), "format": "wav"}}


def ask(server: Server, *parts: dict[str, Any]) -> Any:
    content = [*parts, {"type": "text", "text": TEXT}]
    return server.client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": content}],  # type: ignore[list-item,misc]
        temperature=0,
        max_tokens=8,
        logprobs=True,
        top_logprobs=3,
    )


def scores(answer: Any) -> list[float]:
    return [token.logprob for token in answer.choices[0].logprobs.content]


def expected(folder: Path, *sounds: Samples) -> list[float]:
    """Log-probabilities of transformers' parts, greedily continuing the same prompt."""
    family, tokenizer = family_for(folder), Tokenizer(folder)
    items = [sound_item(family, one) for one in sounds]
    items = [type("Item", (), {"modality": "audio", "tokens": item.length}) for item in items]
    parts = [{"type": "audio"} for _ in sounds]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": TEXT}]}]
    prompt = build_chat(ChatTemplate(None, tokenizer, family), messages, items)
    media = [
        sound_item(family, one, span.start) for one, span in zip(sounds, prompt.spans, strict=True)
    ]
    assert [item.digest for item in media] == [digest(one) for one in sounds]
    reference = ComposedUltravox(folder, sounds)
    tokens, found = list(prompt.token_ids), []
    ends = end_tokens(folder)
    for _ in range(8):
        best = reference.logits(tokens, media)[-1].log_softmax(-1).max(0)
        found.append(best.values.item())
        tokens.append(int(best.indices))
        if tokens[-1] in ends:
            break
    return found


@pytest.mark.parametrize("sounds", [(SHORT,), (LONG,), (LONG, SHORT)])
def test_what_is_heard_is_what_transformers_parts_hear(
    sounds: tuple[Samples, ...], server: Server, folder: Path
) -> None:
    answer = ask(server, *(input_audio(one) for one in sounds))
    wanted = expected(folder, *sounds)
    found = scores(answer)
    assert found == pytest.approx(wanted[: len(found)], abs=1e-4)
    other = expected(folder, *(one[::-1].copy() for one in sounds))
    assert found != pytest.approx(other[: len(found)], abs=1e-3)


def test_the_order_of_sounds_counts(server: Server) -> None:
    one, two = input_audio(SHORT), input_audio(LONG)
    assert scores(ask(server, one, two)) != pytest.approx(scores(ask(server, two, one)), abs=1e-3)


def test_a_url_and_another_format_are_heard_alike(server: Server) -> None:
    heard = scores(ask(server, input_audio(SHORT)))
    flac = encoded(SHORT, "FLAC", "PCM_24")
    part = {"type": "audio_url", "audio_url": {"url": f"data:audio/flac;base64,{flac}"}}
    assert scores(ask(server, part)) == pytest.approx(heard, abs=1e-2)


def test_usage_counts_the_tokens_of_sounds(server: Server, folder: Path) -> None:
    plain = ask(server).usage.prompt_tokens
    heard = ask(server, input_audio(LONG)).usage
    tokens = family_for(folder).audio_tokens(len(LONG))
    assert heard.prompt_tokens == plain + tokens
    assert heard.prompt_tokens_details.audio_tokens == tokens


@pytest.mark.parametrize(
    ("parts", "status", "code", "param"),
    [
        ([input_audio(SHORT)] * 3, 400, "too_many_items", "messages[0].content[2]"),
        ([input_audio(sound(70_000, 3))], 400, "media_too_large", "messages[0].content[0]"),
        (
            [{"type": "input_audio", "input_audio": {"data": "UklGRgAA", "format": "wav"}}],
            422,
            "media_undecodable",
            "messages[0].content[0]",
        ),
        (
            [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
            400,
            "unsupported_parameter",
            "messages[0].content[0]",
        ),
    ],
)
def test_what_is_refused_is_named(
    parts: list[dict[str, Any]], status: int, code: str, param: str, server: Server
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        ask(server, *parts)
    assert (refused.value.status_code, refused.value.code) == (status, code)
    assert str(refused.value.param).startswith(param)
    assert ask(server, input_audio(SHORT)).choices


def test_a_placeholder_that_a_user_writes_is_text(server: Server) -> None:
    text = {"type": "text", "text": "<|reserved_special_token_0|>"}
    answer = ask(server, text, input_audio(SHORT))
    assert (
        answer.usage.prompt_tokens_details.audio_tokens
        == ask(server, input_audio(SHORT)).usage.prompt_tokens_details.audio_tokens
    )


def test_a_sound_is_timed_in_its_tower(server: Server) -> None:
    ask(server, input_audio(sound(12_345, 77)))
    with urllib.request.urlopen(server.base_url + "/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    name = 'appliance_media_seconds_count{modality="audio",stage="encode"}'
    assert any(line.startswith(name) and float(line.split()[-1]) > 0 for line in lines)


def librosa_by_process(server: Server) -> dict[str, set[bool]]:
    """Whether numba, which comes with librosa, is loaded: in workers, and in all others."""
    found: dict[str, set[bool]] = {"workers": set(), "others": set()}
    this = psutil.Process(server.process.pid)
    for process in (this, *this.children(recursive=True)):
        kind = "workers" if "appliance.media.worker" in " ".join(process.cmdline()) else "others"
        loaded = any("llvmlite" in mapped.path for mapped in process.memory_maps())
        found[kind].add(loaded)
    return found


def test_only_the_workers_of_a_model_that_hears_load_librosa(
    server: Server, tiny_qwen2_vl: Server
) -> None:
    ask(server, input_audio(SHORT))
    assert librosa_by_process(server) == {"workers": {True}, "others": {False}}
    assert librosa_by_process(tiny_qwen2_vl) == {"workers": {False}, "others": {False}}
