"""Videos and embeddings through the launched endpoint, with the official client."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save
from transformers.video_utils import read_video_pyav

from bench.reference import Reference, picture
from engine.models.registry import family_for
from engine.request import MediaItem
from tests.engine.models.pictures import media_item
from tests.engine.models.video_processor import VideoProcessor
from tests.media.clips import sound_with_cover, video
from tests.serving.conftest import Server, serving

TEXT = "What happens here?"


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("qwen2_vl")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    told = [f"model.path={folder}", "model.name=tiny", "model.max_len=1024", "engine.threads=1"]
    limits = ["media.video.limit=2", "media.video.max_seconds=30", "media.embeddings.accept=true"]
    with serving("recipe=qwen2_vl", *told, *limits) as server:
        yield server


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    torch.set_num_threads(1)
    return Reference(folder)


def clip_url(data: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def frames_url(frames: list[Image.Image], form: str = "jpeg") -> str:
    listed = []
    for frame in frames:
        encoded = io.BytesIO()
        frame.save(encoded, form.upper())
        listed.append(base64.b64encode(encoded.getvalue()).decode())
    return f"data:video/{form};base64,{','.join(listed)}"


def clip(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def ask(server: Server, *parts: dict[str, Any]) -> Any:
    return server.client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": [*parts, {"type": "text", "text": TEXT}]}],  # type: ignore[list-item,misc]
        temperature=0,
        max_tokens=8,
        logprobs=True,
        top_logprobs=5,
    )


def scores(answer: Any) -> list[float]:
    return [token.logprob for token in answer.choices[0].logprobs.content]


def refusal(server: Server, *parts: dict[str, Any]) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as refused:
        ask(server, *parts)
    return refused.value


def by_transformers(
    reference: Reference, folder: Path, items: list[MediaItem], count: int
) -> tuple[int, list[float]]:
    """Prompt length and log-probabilities of a greedy answer to these items and the text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    parts: list[dict[str, str]] = [{"type": item.modality} for item in items]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": [*parts, {"type": "text", "text": TEXT}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    for item in items:
        pad = f"<|{item.modality}_pad|>"
        text = text.replace(pad, "<placeholder>" * item.length, 1)
        text = text.replace("<placeholder>", pad)
    tokens = tokenizer(text)["input_ids"]
    answer = reference.generate(tokens, count, items)
    logits = reference.logits(tokens + answer, items)[len(tokens) - 1 : -1]
    return len(tokens), logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[
        :, 0
    ].tolist()


def test_an_answer_to_a_video_is_that_of_transformers(
    server: Server, folder: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = video(60, rate=12, options={"g": "15", "bf": "2"})
    processor = VideoProcessor(folder, fps=2.0)
    processor.theirs.size = {
        "shortest_edge": processor.theirs.size["shortest_edge"],
        "longest_edge": 602112,
    }
    indices = processor.indices(60, 12.0)
    pixels, _ = read_video_pyav(io.BytesIO(data), lambda metadata: indices)
    frames = [Image.fromarray(frame) for frame in pixels]
    tensors = processor(frames)
    length = int(tensors["video_grid_thw"].prod()) // 4
    monkeypatch.setattr(type(reference.family), "tower_inputs", lambda family, item: item.tensors)
    item = MediaItem("video", b"", 0, length, tensors)
    expected_length, expected = by_transformers(reference, folder, [item], 8)
    answer = ask(server, clip(clip_url(data)))
    assert answer.usage.prompt_tokens == expected_length
    assert answer.usage.prompt_tokens_details.model_dump()["video_tokens"] == length
    assert scores(answer) == pytest.approx(expected, abs=1e-3)
    backwards = MediaItem("video", b"", 0, length, processor(frames[::-1]))
    _, unexpected = by_transformers(reference, folder, [backwards], 8)
    assert scores(answer) != pytest.approx(unexpected, abs=1e-2)


def test_frames_that_were_sampled_already_are_all_taken(server: Server) -> None:
    frames = [picture(96, 64, seed) for seed in range(6)]
    forth = ask(server, clip(frames_url(frames, "png")))
    assert forth.usage.prompt_tokens_details.model_dump()["video_tokens"] == 3 * 6
    back = ask(server, clip(frames_url(frames[::-1], "png")))
    assert scores(back) != pytest.approx(scores(forth), abs=1e-3)
    lossy = ask(server, clip(frames_url(frames)))
    assert lossy.usage.prompt_tokens == forth.usage.prompt_tokens


def test_videos_and_pictures_may_stand_together(server: Server) -> None:
    encoded = io.BytesIO()
    picture(84, 84, 1).save(encoded, "PNG")
    image = {"type": "image_url", "image_url": {"url": clip_url(encoded.getvalue(), "image/png")}}
    film = clip(clip_url(video(20)))
    one, other = ask(server, image, film), ask(server, film, image)
    assert one.usage.prompt_tokens == other.usage.prompt_tokens
    details = one.usage.prompt_tokens_details.model_dump()
    assert (details["image_tokens"], details["video_tokens"]) == (9, 2 * 6)
    assert scores(one) != pytest.approx(scores(other), abs=1e-3)


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("https://example.org/a.mp4", 400, "media_not_allowed"),
        (clip_url(b"no video"), 422, "media_undecodable"),
        (clip_url(video(20)[:900]), 422, "media_undecodable"),
        (clip_url(sound_with_cover()), 422, "media_undecodable"),
        (clip_url(b""), 422, "media_undecodable"),
        (clip_url(video(100, rate=3)), 400, "media_too_large"),
        ("data:video/jpeg;base64,", 422, "media_undecodable"),
        ("data:video/jpeg;base64,AAAA,AAAA", 422, "media_undecodable"),
        ("data:video/jpeg;base64,AAAA,A", 400, "invalid_data_url"),
        ("data:video/jpeg;base64," + ",".join(["AAAA"] * 800), 400, "media_too_large"),
        (frames_url([picture(60, 60, 1), picture(60, 62, 1)]), 422, "media_undecodable"),
        (clip_url(video(1), "image/png"), 400, "invalid_data_url"),
    ],
    ids=range(12),
)
def test_a_video_that_cannot_be_taken_names_its_part(
    url: str, status: int, code: str, server: Server
) -> None:
    error = refusal(server, clip(clip_url(video(2))), clip(url))
    assert (error.status_code, error.code) == (status, code)
    assert error.param == "messages[0].content[1].video_url.url"
    assert ask(server, clip(clip_url(video(2)))).choices


def test_more_videos_than_allowed_are_refused(server: Server) -> None:
    error = refusal(server, *[clip("data:broken")] * 3)
    assert (error.status_code, error.code) == (400, "too_many_items")


def test_a_video_that_does_not_fit_the_prompt_is_refused(server: Server) -> None:
    error = refusal(server, clip(clip_url(video(30, size=(640, 480), rate=2))))
    assert (error.status_code, error.code) == (400, "context_length_exceeded")


def test_sound_is_refused_by_a_model_that_takes_none(server: Server) -> None:
    for part in (
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AAAA"}},
    ):
        error = refusal(server, part)
        assert error.status_code == 400
        assert "This model takes no audio." in error.message
        assert error.param == f"messages[0].content[0].{part['type']}"


def embeddings(reference: Reference, image: Image.Image) -> dict[str, torch.Tensor]:
    item = media_item(reference.family, image)
    inputs = reference.family.tower_inputs(item)
    with torch.inference_mode():
        (embeds,) = reference.model.get_image_features(**inputs).pooler_output
    return {"image_embeds": embeds.clone(), "image_grid_thw": inputs["image_grid_thw"]}


def embeds_part(value: Any) -> dict[str, Any]:
    return {"type": "image_embeds", "image_embeds": value}


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_embeddings_are_answered_as_their_picture(server: Server, reference: Reference) -> None:
    pictures = [picture(84, 140, 1), picture(200, 90, 2)]
    shown = []
    for image in pictures:
        encoded = io.BytesIO()
        image.save(encoded, "PNG")
        url = clip_url(encoded.getvalue(), "image/png")
        shown.append({"type": "image_url", "image_url": {"url": url}})
    expected = ask(server, *shown)
    made = [embeddings(reference, image) for image in pictures]
    array = io.BytesIO()
    np.save(array, made[1]["image_embeds"][None].numpy())
    grid = made[1]["image_grid_thw"].tolist()
    second = {"image_embeds": coded(array.getvalue()), "image_grid_thw": grid}
    first = coded(save(made[0]))
    for parts in ([embeds_part(first), embeds_part(second)], [embeds_part([first, second])]):
        answer = ask(server, *parts)
        assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
        assert scores(answer) == pytest.approx(scores(expected), abs=1e-4)
    other = ask(server, embeds_part(second), embeds_part(first))
    assert scores(other) != pytest.approx(scores(expected), abs=1e-3)
    mixed = refusal(server, embeds_part(first), shown[1])
    assert (mixed.status_code, mixed.code) == (400, "embedding_invalid")
    assert mixed.param == "messages[0].content[1].image_url.url"


def test_embeddings_that_cannot_be_used_name_their_part(
    server: Server, reference: Reference
) -> None:
    made = embeddings(reference, picture(84, 140, 1))
    pickled = io.BytesIO()
    torch.save(made, pickled)
    spoilt = made["image_embeds"].clone()
    spoilt[3, 5] = float("nan")
    wrong = [
        coded(pickled.getvalue()),
        coded(save({"image_embeds": made["image_embeds"]})),
        coded(save(made | {"image_embeds": made["image_embeds"][1:].clone()})),
        coded(save(made | {"image_embeds": made["image_embeds"][:, 1:].contiguous()})),
        coded(save(made | {"image_embeds": spoilt})),
        "AAAA",
    ]
    for value in wrong:
        error = refusal(server, embeds_part(value))
        assert (error.status_code, error.code) == (400, "embedding_invalid")
        assert error.param == "messages[0].content[0].image_embeds"
    assert ask(server, embeds_part(coded(save(made)))).choices


def test_embeddings_are_refused_where_they_are_not_accepted(tiny_qwen2_vl: Server) -> None:
    error = refusal(tiny_qwen2_vl, embeds_part("AAAA"))
    assert (error.status_code, error.code) == (400, "media_not_allowed")
    assert error.param == "messages[0].content[0].image_embeds"


def test_a_model_without_a_tower_for_it_does_not_start_with_a_limit(
    checkpoint: Callable[[str], Path],
) -> None:
    for family, limit in (("llava", "media.video.limit=1"), ("qwen2_vl", "media.audio.limit=1")):
        told = [f"model.path={checkpoint(family)}", "model.name=tiny", "media.image.limit=1", limit]
        command = [sys.executable, "-m", "appliance", *told, "server.port=0"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == 2
        name, _, _ = limit.rpartition("=")
        assert f"set {name}=0" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_the_offline_family_agrees_on_tokens(folder: Path) -> None:
    assert family_for(folder).modalities == ("image", "video")
