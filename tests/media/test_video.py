from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from appliance.config.errors import ConfigurationError
from appliance.errors import ApplianceError
from appliance.media.data_url import FRAME_LIST
from appliance.media.limits import VideoPolicy
from appliance.media.prepare import PREPARERS, Prepared, preparer_for
from appliance.media.video import load_video
from appliance.offline import with_urls
from engine.models.family import VideoOptions
from engine.models.qwen2_vl import Qwen2VL
from tests.checkpoints import write_qwen2_vl
from tests.engine.models.pictures import picture
from tests.media.clips import number_of, video
from tests.media.desk import Desk, desk
from tests.media.policies import settings, video_policy

POLICY = video_policy()
PARAM = "messages[0].content[0].video_url.url"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Qwen2VL:
    return Qwen2VL(write_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl")))


def refusal(data: bytes, policy: VideoPolicy, family: Qwen2VL) -> ApplianceError:
    with pytest.raises(ApplianceError) as refused:
        list(load_video(data, policy, family, PARAM).frames)
    assert refused.value.param == PARAM
    return refused.value


def frame_list(frames: list[Image.Image], form: str = "jpeg", **options: Any) -> bytes:
    """As the reader of data: URLs hands it on."""
    listed = []
    for frame in frames:
        encoded = io.BytesIO()
        frame.save(encoded, form, **options)
        listed.append(base64.b64encode(encoded.getvalue()))
    return FRAME_LIST + b",".join(listed)


@pytest.mark.parametrize(
    "policy",
    [
        POLICY,
        video_policy(frames=6),
        video_policy(fps=1),
        video_policy(fps=50, frames=30),
    ],
)
def test_the_family_says_which_frames_are_taken(policy: VideoPolicy, family: Qwen2VL) -> None:
    clip = load_video(video(75, rate=15), policy, family, PARAM)
    expected = family.sample_frames(75, 15.0, policy.options)
    assert [number_of(frame) for frame in clip.frames] == list(clip.numbers) == expected
    assert (clip.total, clip.fps, clip.seconds) == (75, 15.0, 5.0)
    assert clip.times == pytest.approx([number / 15 for number in expected], abs=1e-3)


def test_what_lasts_too_long_is_refused(family: Qwen2VL) -> None:
    data = video(40, rate=10)
    assert load_video(data, video_policy(max_seconds=4), family, PARAM).seconds == 4
    error = refusal(data, video_policy(max_seconds=3.9), family)
    assert (error.status, error.code) == (400, "media_too_large")
    assert "4.0 seconds" in error.message
    late = video(3, form="matroska", times=[0, 100, 50_000])  # ten frames a second, it claims
    assert refusal(late, video_policy(max_seconds=30), family).code == "media_too_large"


def test_limits_on_bytes_pixels_and_decoded_frames(family: Qwen2VL) -> None:
    data = video(40)
    taken = 8 * 96 * 64 * 3
    good = video_policy(max_bytes=len(data), max_pixels=96 * 64, max_decoded_bytes=taken)
    assert len(list(load_video(data, good, family, PARAM).frames)) == 8
    for policy in (
        video_policy(max_bytes=len(data) - 1),
        video_policy(max_pixels=96 * 64 - 1),
        video_policy(max_decoded_bytes=taken - 1),
    ):
        error = refusal(data, policy, family)
        assert (error.status, error.code) == (400, "media_too_large")


def test_decoding_holds_few_frames_at_a_time(
    family: Qwen2VL, tracing: Callable[[], AbstractContextManager[Callable[[], int]]]
) -> None:
    data = video(60, size=(640, 480), rate=30)
    options = VideoOptions(fps=30.0)
    with tracing() as peak:
        clip = load_video(data, video_policy(fps=30.0), family, PARAM)
        arrays = family.preprocess_video(clip.frames, len(clip.numbers), options)
        assert peak() - arrays["pixels"].nbytes < 20 * 640 * 480 * 3
    assert arrays["video_grid_thw"][0, 0] == 30


def test_a_file_that_breaks_off_while_frames_are_taken_is_refused(family: Qwen2VL) -> None:
    data = bytearray(video(40, options={"g": "1"}))
    place = data.index(b"mdat") + 3000
    data[place : place + 4000] = b"\xff" * 4000
    error = refusal(bytes(data), video_policy(fps=10.0), family)
    assert (error.status, error.code) == (422, "media_undecodable")


def test_a_list_of_frames_is_taken_as_it_is(family: Qwen2VL) -> None:
    frames = [picture(90, 60, seed) for seed in range(5)]
    clip = load_video(frame_list(frames, "png"), POLICY, family, PARAM)
    assert (clip.size, clip.total, list(clip.numbers)) == ((90, 60), 5, [0, 1, 2, 3, 4])
    assert [frame.tobytes() for frame in clip.frames] == [frame.tobytes() for frame in frames]
    assert (clip.fps, clip.seconds, list(clip.times)) == (None, None, [])
    lossy = load_video(frame_list(frames), POLICY, family, PARAM)
    assert [frame.size for frame in lossy.frames] == [(90, 60)] * 5


@pytest.mark.parametrize("most", [1, 4])
def test_a_list_of_more_frames_than_are_ever_taken_is_refused(most: int, family: Qwen2VL) -> None:
    policy = video_policy(frames=most)
    frames = [picture(60, 60, seed) for seed in range(most + 1)]
    assert len(list(load_video(frame_list(frames[:most]), policy, family, PARAM).frames)) == most
    error = refusal(frame_list(frames), policy, family)
    assert (error.status, error.code) == (400, "media_too_large")
    endless = FRAME_LIST + b"," * 5_000_000
    assert refusal(endless, POLICY, family).code == "media_too_large"


def test_frames_of_a_list_meet_the_limits_of_a_video(family: Qwen2VL) -> None:
    frames = [picture(60, 60, seed) for seed in range(2)]
    data = frame_list(frames)
    for policy in (
        video_policy(max_bytes=1000),
        video_policy(max_pixels=3599),
        video_policy(max_decoded_bytes=2 * 60 * 60 * 3 - 1),
    ):
        error = refusal(data, policy, family)
        assert (error.status, error.code) == (400, "media_too_large")


def test_a_list_that_is_damaged_is_refused(family: Qwen2VL) -> None:
    good = frame_list([picture(60, 60, 1)] * 2)
    for data, status in (
        (good + b",", 422),
        (good[:-5] + b"!" * 5, 400),
        (frame_list([picture(60, 60, 1), picture(60, 61, 1)]), 422),
        (good[:-2000] + b"AA==", 422),
    ):
        assert refusal(data, POLICY, family).status == status


def test_a_strip_that_the_model_cannot_take_is_refused(family: Qwen2VL) -> None:
    preparer = preparer_for("video", family, settings(video=POLICY))
    data = frame_list([Image.new("RGB", (603, 3))] * 2, "png")
    with pytest.raises(ApplianceError) as refused:
        preparer.probe(data, {})
    assert refused.value.status == 422


@pytest.mark.parametrize("kind", PREPARERS)
def test_a_preparer_is_there_for_every_kind(kind: str, family: Qwen2VL) -> None:
    assert callable(preparer_for(kind, family, settings()).probe)


class Ear(Qwen2VL):
    """A family that hears, for want of a real one: a token for each 160 samples."""

    def audio_rate(self) -> int:
        return 16_000

    def audio_tokens(self, samples: int) -> int:
        if samples < 160:
            raise ValueError("too short")
        return samples // 160

    def preprocess_audio(self, samples: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        return {"samples": samples}


def test_sound_is_ready_for_a_family_that_hears(family: Qwen2VL) -> None:
    preparer = preparer_for("audio", Ear(family.folder), settings())

    def prepared(seconds: float) -> Prepared:
        data = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0"
        data += b"data\xff\xff\xff\xff" + b"\1\2" * int(8000 * seconds)
        sound = preparer.decode(data, {})
        assert (sound.source_rate, sound.channels) == (8000, 1)
        assert sound.seconds == pytest.approx(seconds)
        return preparer.preprocess(sound, {})

    made = prepared(1.5)
    assert made.tokens == 150
    assert made.arrays["samples"].shape == (24_000,)
    with pytest.raises(ApplianceError) as refused:
        prepared(0.001)
    assert refused.value.status == 422


@pytest.fixture(scope="module")
def counter(family: Qwen2VL) -> Iterator[Desk]:
    limits = ["media.video.limit=2", "media.video.max_seconds=100", "media.embeddings.accept=true"]
    with desk(family, *limits) as there:
        yield there


def part(data: bytes, uuid: str | None = None) -> dict[str, Any]:
    if data.startswith(FRAME_LIST):
        url = data.replace(FRAME_LIST, b"data:video/jpeg;base64,", 1).decode()
    else:
        url = "data:video/mp4;base64," + base64.b64encode(data).decode()
    made: dict[str, Any] = {"type": "video_url", "video_url": {"url": url}}
    return made if uuid is None else {**made, "uuid": uuid}


def test_workers_prepare_videos(counter: Desk, family: Qwen2VL) -> None:
    data = video(40, options={"g": "8"})
    item = counter.one(part(data))
    clip = load_video(data, POLICY, family, PARAM)
    expected = family.preprocess_video(clip.frames, len(clip.numbers), POLICY.options)
    assert item.modality == "video"
    assert item.length == family.video_tokens(8, 96, 64, POLICY.options)
    assert item.tensors.keys() == expected.keys()
    assert all(np.array_equal(item.tensors[name], expected[name]) for name in expected)
    hits = counter.metric("media_cache_hits_total", modality="video")
    assert counter.one(part(data)).digest == item.digest
    assert counter.metric("media_cache_hits_total", modality="video") == hits + 1
    assert counter.one(part(video(40, options={"g": "9"}))).digest != item.digest


def test_one_video_after_the_other_leaves_nothing_in_a_worker(family: Qwen2VL) -> None:
    data = video(12, size=(1280, 720), options={"preset": "ultrafast"})
    told = ["media.video.limit=1", "media.workers=1", "media.worker_gb=0.25", "cache.media_gb=0"]
    with desk(family, *told) as there:
        tokens = {there.one(part(data)).length for _ in range(24)}
    assert len(tokens) == 1


def test_workers_prepare_lists_of_frames_and_long_large_videos(counter: Desk) -> None:
    frames = [picture(90, 60, seed) for seed in range(4)]
    listed = counter.one(part(frame_list(frames, "png")))
    assert listed.tensors["video_grid_thw"].tolist()[0][0] == 2
    long = video(48, size=(1920, 1080), rate=1, options={"preset": "ultrafast"})
    assert counter.one(part(long)).tensors["video_grid_thw"][0, 0] == 24


def test_a_uuid_stands_for_a_video(counter: Desk) -> None:
    data = video(12)
    first = counter.one(part(data, "film"))
    again = counter.one({"type": "video_url", "video_url": None, "uuid": "film"})
    assert again.digest == first.digest
    error = counter.refusal([part(video(13), "film")])
    assert (error.status, error.code) == (409, "media_uuid_conflict")


def test_options_of_a_request_lower_what_is_taken(family: Qwen2VL) -> None:
    data = video(80, rate=10)
    with desk(family, "media.video.limit=1", "media.video.frames=12", "media.video.fps=2") as there:
        items = {
            name: there.load([{"content": [part(data)]}], options={"video": options})[0]
            for name, options in {
                "plain": {},
                "fewer": {"num_frames": 6},
                "slower": {"fps": 0.5},
                "more": {"num_frames": 100, "fps": 9},
            }.items()
        }
    steps = {name: int(item.tensors["video_grid_thw"][0, 0]) for name, item in items.items()}
    assert steps == {"plain": 6, "fewer": 3, "slower": 2, "more": 6}
    assert len({item.digest for item in items.values()}) == 4


def test_an_option_without_a_ceiling_stops_the_start(family: Qwen2VL) -> None:
    allowed = "media.allow_request_options=[video.fps]"
    with (
        pytest.raises(ConfigurationError, match=r"set media\.video\.fps"),
        desk(family, "media.video.limit=1", allowed),
    ):
        pass


def test_a_worker_survives_broken_videos(counter: Desk) -> None:
    data = video(30)
    for broken in (b"", data[:500], data[:-300], data[:900] + b"\0" * 900 + data[1800:]):
        error = counter.refusal([part(data), part(broken)])
        assert (error.status, error.code) == (422, "media_undecodable")
        assert error.param == "messages[0].content[1].video_url.url"
    assert counter.one(part(data)).length


def test_frames_of_the_offline_interface_lose_nothing(counter: Desk, family: Qwen2VL) -> None:
    frames = [picture(90, 60, seed) for seed in range(4)]
    parts = [{"type": "video", "video": frames}, {"type": "text", "text": "What happens?"}]
    (message,) = with_urls([{"role": "user", "content": parts}])
    (item,) = counter.load([message])
    expected = family.preprocess_video(iter(frames), 4, POLICY.options)
    assert np.array_equal(item.tensors["pixels"], expected["pixels"])
