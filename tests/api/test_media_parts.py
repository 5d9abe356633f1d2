from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.api.chat.media_options import read_media_options
from appliance.api.chat.messages import read_messages
from appliance.config.compose import compose
from appliance.errors import ApplianceError
from appliance.media.source import EmbeddingFields, Source


def read(*parts: Any) -> list[dict[str, Any]]:
    conversation = read_messages([{"role": "user", "content": list(parts)}], [])
    return conversation.messages[0]["content"]  # type: ignore[no-any-return]


def found(*parts: Any) -> list[Source]:
    return read_messages([{"role": "user", "content": list(parts)}], []).sources


def refused(*parts: Any) -> ApplianceError:
    with pytest.raises(ApplianceError) as refusal:
        read(*parts)
    assert refusal.value.status == 400
    return refusal.value


def test_parts_come_in_long_and_short_forms() -> None:
    for kind in ("image_url", "video_url", "audio_url"):
        where, modality = "messages[0].content[0]", kind.removesuffix("_url")
        expected = Source(modality, "https://example.org/a", where, f"{where}.{kind}", ".url")
        for part in (
            {"type": kind, kind: {"url": "https://example.org/a"}},
            {kind: {"url": "https://example.org/a"}},
            {kind: "https://example.org/a"},
        ):
            assert read(part) == [{"type": modality}]
            assert found(part) == [expected]
        assert refused({"type": kind, kind: "https://example.org/a"}).param == (
            f"messages[0].content[0].{kind}"
        )


def test_input_audio_becomes_a_data_url() -> None:
    audio = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    assert read(audio) == [{"type": "audio"}]
    (source,) = found(audio)
    assert source.content == "data:audio/wav;base64,AAAA"
    assert (source.kind, source.modality) == ("audio", "audio")
    assert source.param == "messages[0].content[0].input_audio.data"


@pytest.mark.parametrize(
    ("data", "content"),
    [
        ("data:audio/wav;base64,AAAA", "data:audio/wav;base64,AAAA"),
        (" DATA:;base64,AA AA", " DATA:;base64,AA AA"),
        ("AA\nAA", "data:audio/wav;base64,AA\nAA"),
        ("AAAA#AA", "data:audio/wav;base64,AAAA%23AA"),
        ("https://example.org/a.wav", "data:audio/wav;base64,https://example.org/a.wav"),
        ("file:///a.wav", "data:audio/wav;base64,file:///a.wav"),
    ],
)
def test_input_audio_may_be_a_data_url_and_no_other(data: str, content: str) -> None:
    (source,) = found({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
    assert source.content == content


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("AAAA", ""),
        ({"format": "wav"}, ".data"),
        ({"data": "AAAA"}, ".format"),
        ({"data": 5, "format": "wav"}, ".data"),
        ({"data": "AAAA", "format": "wav;base64,BBBB"}, ".format"),
        ({"data": "AAAA", "format": ""}, ".format"),
    ],
)
def test_a_wrong_input_audio_is_named(value: Any, field: str) -> None:
    error = refused({"type": "input_audio", "input_audio": value})
    assert error.param == f"messages[0].content[0].input_audio{field}"


def test_embeddings_are_text_or_text_with_a_grid() -> None:
    for value in ("AAAA", {"image_embeds": "AAAA", "image_grid_thw": [1, 2, 3]}):
        assert read({"type": "image_embeds", "image_embeds": value}) == [{"type": "image"}]
        (source,) = found({"image_embeds": value})
        fields = value if isinstance(value, dict) else {"image_embeds": value}
        assert isinstance(source.content, EmbeddingFields)
        assert source.content.fields == fields
        assert json.loads(source.content.encoded()) == fields
        assert (source.kind, source.modality) == ("image_embeds", "image")
        assert source.param == "messages[0].content[0].image_embeds"


def test_a_list_of_embeddings_is_several_items() -> None:
    several = {"type": "image_embeds", "image_embeds": ["AAAA", {"image_embeds": "BBBB"}]}
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    kinds = [part["type"] for part in read("a", several, "b", picture)]
    assert kinds == ["text", "image", "image", "text", "image"]
    assert [(source.param, source.part) for source in found("a", several, "b", picture)] == [
        ("messages[0].content[1].image_embeds[0]", "messages[0].content[1]"),
        ("messages[0].content[1].image_embeds[1]", "messages[0].content[1]"),
        ("messages[0].content[3].image_url.url", "messages[0].content[3]"),
    ]


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (None, ""),
        (5, ""),
        ([], ""),
        ([[]], "[0]"),
        (["AAAA", 5], "[1]"),
        ({}, ".image_embeds"),
        ({"image_embeds": 5}, ".image_embeds"),
        ({"image_embeds": "AAAA", "image_grid_thw": 5}, ".image_grid_thw"),
        ({"image_embeds": "AAAA", "secret": "x"}, ""),
    ],
)
def test_wrong_embeddings_are_named(value: Any, field: str) -> None:
    error = refused({"type": "image_embeds", "image_embeds": value})
    assert error.param == f"messages[0].content[0].image_embeds{field}"


@pytest.mark.parametrize("kind", ["video_url", "audio_url", "input_audio", "image_embeds"])
def test_a_uuid_may_stand_for_any_media(kind: str) -> None:
    for value in (None, {}):
        (source,) = found({"type": kind, kind: value, "uuid": "u"})
        assert (source.uuid, source.content) == ("u", None)
    error = refused({"image_embeds": ["AAAA", "BBBB"], "uuid": "u"})
    assert error.param == "messages[0].content[0].uuid"


def options(given: Any, *allowed: str) -> dict[str, dict[str, Any]]:
    told = ["model.path=x/y", "model.name=tiny", "media.video.frames=32", "media.video.fps=2"]
    listed = f"media.allow_request_options=[{','.join(allowed)}]"
    return read_media_options(given, compose([*told, listed]).config.media)


def test_a_request_may_lower_what_the_recipe_lists() -> None:
    both = ("video.num_frames", "video.fps")
    given = {"video": {"num_frames": 8, "fps": 0.5}, "image": None}
    assert options(given, *both) == {"video": {"num_frames": 8, "fps": 0.5}}
    assert options({"video": {"num_frames": 32, "fps": None}}, *both) == {
        "video": {"num_frames": 32}
    }
    assert options({}) == options({"video": {}}) == {}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"video": 5}, "video"),
        ({"video": {"fps": 1}}, "video.fps"),
        ({"image": {"max_pixels": 1}}, "image.max_pixels"),
        ({"video": {"num_frames": 33}}, "video.num_frames"),
        ({"video": {"num_frames": 0}}, "video.num_frames"),
        ({"video": {"num_frames": -1}}, "video.num_frames"),
        ({"video": {"num_frames": 2.5}}, "video.num_frames"),
        ({"video": {"num_frames": True}}, "video.num_frames"),
        ({"video": {"num_frames": "8"}}, "video.num_frames"),
        ({"video": {"num_frames": float("nan")}}, "video.num_frames"),
    ],
)
def test_an_option_that_may_not_be_set_is_named(given: Any, field: str) -> None:
    with pytest.raises(ApplianceError) as refusal:
        options(given, "video.num_frames")
    assert (refusal.value.status, refusal.value.param) == (400, f"media_io_kwargs.{field}")
