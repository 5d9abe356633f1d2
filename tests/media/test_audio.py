from __future__ import annotations

import io
import os
import random
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import av
import librosa
import numpy as np
import pytest
import soundfile

from appliance.errors import ApplianceError
from appliance.media.audio import Sound, load_audio
from appliance.media.fork_server import ENVIRONMENT
from appliance.media.limits import AudioPolicy
from tests.media.clips import sound_with_cover, video
from tests.media.policies import audio_policy

POLICY = audio_policy(max_seconds=20)
RATE = 16_000
PARAM = "messages[0].content[0].input_audio.data"


def tones(rate: int, seconds: float = 1.3, channels: int = 1, pitch: float = 330) -> Any:
    """`[samples, channels]`, each channel its own tone under noise."""
    time = np.arange(int(rate * seconds)) / rate
    rng = np.random.default_rng(rate)
    made = [0.3 * np.sin(2 * np.pi * (pitch + 110 * n) * time) for n in range(channels)]
    return (np.stack(made, 1) + 0.02 * rng.standard_normal((len(time), channels))).astype("f4")


def written(
    form: str, subtype: str, rate: int = RATE, endian: str | None = None, **changes: Any
) -> bytes:
    file = io.BytesIO()
    samples = tones(rate, **changes)
    soundfile.write(file, samples, rate, format=form, subtype=subtype, endian=endian)
    return file.getvalue()


def muxed(form: str, codec: str, rate: int, layout: str = "mono") -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        samples = np.ascontiguousarray(tones(rate, channels=1 + (layout == "stereo")).T)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate = rate
        context = stream.codec_context
        fitting = av.AudioResampler(context.format.name, layout, rate, context.frame_size)
        for part in (*fitting.resample(frame), *fitting.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode())
    return file.getvalue()


def loaded(data: bytes, policy: AudioPolicy = POLICY) -> Sound:
    return load_audio(data, RATE, policy, PARAM)


def refusal(data: bytes, policy: AudioPolicy = POLICY) -> ApplianceError:
    with pytest.raises(ApplianceError) as refused:
        loaded(data, policy)
    assert refused.value.param == PARAM
    return refused.value


def by_librosa(data: bytes) -> Any:
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return librosa.resample(librosa.to_mono(samples.T), orig_sr=rate, target_sr=RATE)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize(
    ("form", "subtype", "rate"),
    [
        ("WAV", "PCM_16", 44_100),
        ("WAV", "PCM_U8", 8_000),
        ("WAV", "PCM_24", RATE),
        ("WAV", "FLOAT", 96_000),
        ("WAVEX", "PCM_32", 22_050),
        ("RF64", "PCM_16", 11_025),
        ("FLAC", "PCM_16", 48_000),
        ("OGG", "VORBIS", 44_100),
        ("OGG", "OPUS", 24_000),
        ("MP3", "MPEG_LAYER_III", 44_100),
    ],
)
def test_samples_equal_those_of_soundfile_and_librosa(
    form: str, subtype: str, rate: int, channels: int
) -> None:
    if form == "MP3" and channels > 2:
        channels = 2
    data = written(form, subtype, rate, channels=channels, seconds=5.37)
    sound = loaded(data)
    expected = by_librosa(data)
    assert sound.samples.dtype == np.float32
    assert sound.samples.shape == expected.shape
    np.testing.assert_allclose(sound.samples, expected, rtol=0, atol=1e-6)
    assert (sound.source_rate, sound.channels) == (rate, channels)
    assert sound.seconds == pytest.approx(5.37, abs=0.1)
    assert np.abs(sound.samples[7:] - expected[:-7]).max() > 0.1


@pytest.mark.parametrize(
    ("form", "codec", "rate", "layout"),
    [
        ("ipod", "aac", 44_100, "stereo"),
        ("mp4", "aac", RATE, "mono"),
        ("ipod", "alac", 44_100, "mono"),
        ("adts", "aac", 48_000, "mono"),
        ("webm", "libopus", 48_000, "stereo"),
        ("matroska", "libmp3lame", 44_100, "mono"),
    ],
)
def test_containers_give_the_same_sound(form: str, codec: str, rate: int, layout: str) -> None:
    sound = loaded(muxed(form, codec, rate, layout))
    expected = by_librosa(written("WAV", "FLOAT", rate, channels=1 + (layout == "stereo")))
    assert sound.seconds == pytest.approx(1.3, abs=0.12)
    assert likeness(sound.samples, expected) > 0.95
    assert likeness(sound.samples, by_librosa(written("WAV", "FLOAT", rate, pitch=400))) < 0.5


def likeness(one: Any, other: Any) -> float:
    """How alike two spectra are, whatever a codec put before the first sample."""
    first, second = (np.abs(np.fft.rfft(sound[:20_000], 1 << 15))[:4096] for sound in (one, other))
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def test_a_sound_track_of_a_video_has_the_same_limits() -> None:
    data = video(5, sound=True)
    assert loaded(data).seconds == pytest.approx(1, abs=0.1)
    error = refusal(data, audio_policy(max_seconds=0.5))
    assert (error.status, error.code) == (400, "media_too_large")
    assert loaded(sound_with_cover()).seconds == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_what_is_too_long_is_refused(form: str) -> None:
    data = written(form, {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}.get(form, "PCM_16"), seconds=3)
    assert loaded(data).seconds == pytest.approx(3, abs=0.1)
    error = refusal(data, audio_policy(max_seconds=2.5))
    assert (error.status, error.code) == (400, "media_too_large")
    assert "2.5 seconds" in error.message
    error = refusal(data, audio_policy(max_bytes=len(data) - 1))
    assert (error.status, error.code) == (400, "media_too_large")


def test_a_long_silence_in_few_bytes_stops_at_the_limit(
    tracing: Callable[[], AbstractContextManager[Callable[[], int]]],
) -> None:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", RATE, 1, "PCM_16", format="FLAC") as flac:
        for _ in range(60):
            flac.write(np.zeros(60 * RATE, np.int16))
    data = file.getvalue()
    assert len(data) < 1 << 20
    with tracing() as peak:
        assert refusal(data).code == "media_too_large"
        assert peak() < 16 << 20


def test_a_hundred_channels_are_refused() -> None:
    error = refusal(written("WAV", "PCM_16", channels=100, seconds=0.5))
    assert (error.status, error.code) == (400, "media_too_large")
    assert "100 channels" in error.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(value: float) -> None:
    samples = tones(RATE, channels=2)
    samples[-7, 1] = value
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
    error = refusal(file.getvalue())
    assert (error.status, error.code) == (422, "media_undecodable")
    assert "no numbers" in error.message


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG"])
def test_no_samples_are_refused(form: str) -> None:
    subtype = "VORBIS" if form == "OGG" else "PCM_16"
    assert refusal(written(form, subtype, seconds=0)).status == 422


@pytest.mark.parametrize("rate", [0, 1, 999, 400_000, 4_000_000_000])
def test_a_rate_that_no_sound_has_is_refused(rate: int) -> None:
    data = bytearray(written("WAV", "PCM_16"))
    data[24:28] = struct.pack("<I", rate)
    error = refusal(bytes(data))
    assert (error.status, error.code) == (422, "media_undecodable")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"R",
        b"\xff",
        b"no sound at all" * 100,
        b"\0" * 4000,
        b"RIFF\x24\0\0\0WAVE",
        b"fLaC" + b"\0" * 100,
        b"OggS" + b"\0" * 100,
        b"ID3\x04\0\0\0\0\0\0" + b"\0" * 500,
        b"\xff\xfb\x90\x64" + b"\0" * 20,
        b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42",
        b"#EXTM3U\nhttp://127.0.0.1:9/a.aac\n",
        b"<audio/>",
    ],
)
def test_what_is_no_sound_is_refused(data: bytes) -> None:
    error = refusal(data)
    assert (error.status, error.code) == (422, "media_undecodable")


def test_a_file_without_sound_is_refused() -> None:
    assert refusal(video(3)).status == 422


def test_files_that_end_before_their_header_says_are_refused() -> None:
    for form in ("WAV", "FLAC"):
        data = written(form, "PCM_16")
        assert refusal(data[: len(data) // 2]).status == 422
    assert refusal(muxed("ipod", "aac", 44_100)[:4000]).status == 422


def sized(data: bytes, whole: int, samples: int) -> bytes:
    """A WAV file whose header says so."""
    order = ">" if data[:4] == b"RIFX" else "<"
    place = data.index(b"data")
    length = struct.pack(order + "I", samples)
    data = data[: place + 4] + length + data[place + 8 :]
    return data[:4] + struct.pack(order + "I", whole) + data[8:]


def sized64(data: bytes, whole: int, samples: int) -> bytes:
    """An RF64 file whose header says so."""
    place = data.index(b"ds64") + 8
    return data[:place] + struct.pack("<QQ", whole, samples) + data[place + 16 :]


def wave(**changes: Any) -> bytes:
    return written("WAV", "PCM_16", **changes)


WAVE = wave()
BYTES = len(WAVE) - 44
ALL, MANY = 0xFFFFFFFF, 0x7FFFFFFF
UNTOLD = {
    "nothing": sized(WAVE, 36, 0),
    "nothing anywhere": sized(WAVE, 0, 0),
    "nothing, and the file's length": sized(WAVE, len(WAVE) - 8, 0),
    "all ones": sized(WAVE, ALL, ALL),
    "all ones and the header": sized(WAVE, 35, ALL),
    "the most of a signed number": sized(WAVE, MANY, MANY - 36),
    "as sox has it": sized(WAVE, 0x7FFFF024, 0x7FFFF000),
    "half of all": sized(WAVE, 0x80000024, 0x80000000),
    "minus the header": sized(WAVE, ALL, ALL - 36),
    "the header with it": sized(WAVE, len(WAVE) - 8, len(WAVE)),
    "too much in a whole file": sized(WAVE, len(WAVE) - 8, 9 * BYTES),
    "one byte too much": sized(WAVE, len(WAVE) - 7, BYTES + 1),
    "nothing of eight bits": sized(written("WAV", "PCM_U8"), 0, 0),
    "nothing of floats": sized(written("WAV", "FLOAT"), 0, 0),
    "nothing, in chunks of more": sized(written("WAVEX", "PCM_24"), 0, 0),
    "nothing of 64 bits": sized64(written("RF64", "PCM_16"), 0, 0),
    "all ones of 64 bits": sized64(written("RF64", "PCM_16"), 2**64 - 1, 2**64 - 1),
    "nothing, the other way round": sized(written("WAV", "PCM_16", endian="BIG"), 0, 0),
    "all ones, the other way round": sized(written("WAV", "PCM_16", endian="BIG"), ALL, ALL),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_a_wave_of_unknown_length_is_all_that_is_there(name: str) -> None:
    subtype = {"nothing of eight bits": "PCM_U8", "nothing of floats": "FLOAT"}.get(name, "PCM_16")
    subtype = "PCM_24" if name.endswith("of more") else subtype
    expected = loaded(written("WAV", subtype)).samples
    assert np.array_equal(loaded(UNTOLD[name]).samples, expected)
    longer = audio_policy(max_seconds=1.2)
    assert refusal(UNTOLD[name], longer).code == "media_too_large"


def test_a_wave_that_lost_samples_is_refused() -> None:
    for data in (
        WAVE[: len(WAVE) // 2],
        WAVE[:-1000],
        sized(WAVE, 2 * len(WAVE), 2 * BYTES),
        sized(WAVE, 0, 2 * BYTES),
        sized(WAVE, 36, 2 * BYTES),
        sized(WAVE, ALL, 2 * BYTES),
        written("RF64", "PCM_16")[:-1000],
        written("WAV", "PCM_16", endian="BIG")[:-1000],
    ):
        assert refusal(data).message == "The audio is cut off."


def test_a_wave_of_no_samples_with_chunks_behind_it_stays_empty() -> None:
    words = b"LIST" + struct.pack("<I", 12) + b"INFOISFT\4\0\0\0"[:12]
    for data in (sized(WAVE[:44], 36, 0), sized(WAVE[:44] + words, 36 + len(words), 0)):
        assert refusal(data).message == "The audio has no samples."


def flac(total: int | None = None, **changes: Any) -> bytes:
    """A FLAC file that is said to have so many samples (RFC 9639, 8.2)."""
    data = bytearray(written("FLAC", changes.pop("subtype", "PCM_16"), **changes))
    if total is not None:
        data[21] = data[21] & 0xF0 | total >> 32
        data[22:26] = struct.pack(">I", total & ALL)
    return bytes(data)


@pytest.mark.parametrize("total", [None, 0, 1, 20_800, 20_801, 15_000, 99_999, 2**36 - 1])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_a_flac_is_the_samples_that_are_there(total: int | None, subtype: str) -> None:
    data = flac(total, subtype=subtype)
    assert np.array_equal(loaded(data).samples, by_librosa(flac(subtype=subtype)))
    for cut in (1, 2, 100, len(data) // 2):
        assert refusal(data[:-cut]).status == 422
    assert refusal(data, audio_policy(max_seconds=1.2)).code == "media_too_large"


def mp3(**changes: Any) -> bytes:
    return written("MP3", "MPEG_LAYER_III", **changes)


@pytest.mark.parametrize("count", [0, 1, 5, 30, 1000, ALL])
def test_an_mp3_is_the_frames_that_are_there(count: int) -> None:
    plain = mp3()
    data = bytearray(plain)
    place = re.search(rb"Xing|Info", data)
    assert place is not None
    data[place.end() + 4 : place.end() + 8] = struct.pack(">I", count)
    assert np.array_equal(loaded(bytes(data)).samples, loaded(plain).samples)
    np.testing.assert_allclose(loaded(plain).samples, by_librosa(plain), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["MP3", "OGG", "OPUS"])
def test_sounds_one_behind_the_other_are_all_heard(form: str) -> None:
    first, second = (
        mp3(pitch=pitch)
        if form == "MP3"
        else written("OGG", "VORBIS" if form == "OGG" else "OPUS", pitch=pitch)
        for pitch in (330, 700)
    )
    sound = loaded(first + second)
    assert sound.seconds == pytest.approx(2.6, abs=0.25)  # padding of both
    assert likeness(sound.samples[-20_000:], loaded(second).samples[-20_000:]) > 0.9
    assert refusal(first + second, audio_policy(max_seconds=2)).code == "media_too_large"


@pytest.mark.parametrize(
    ("form", "codec"), [("webm", "libopus"), ("matroska", "libmp3lame"), ("adts", "aac")]
)
def test_a_container_of_sound_that_is_cut_off_is_refused(form: str, codec: str) -> None:
    data = muxed(form, codec, 48_000)
    assert loaded(data).seconds == pytest.approx(1.3, abs=0.12)
    for share in (0.4, 0.6, 0.8):
        assert refusal(data[: int(len(data) * share)]).status == 422


@pytest.mark.parametrize("declared", [b"ftyp", b"moov"])
def test_sound_alone_in_a_film_is_sound(declared: bytes) -> None:
    data = muxed("mp4", "aac", 48_000)
    assert declared in data
    assert loaded(data).seconds == pytest.approx(1.3, abs=0.12)
    assert loaded(muxed("webm", "libopus", 48_000)).seconds == pytest.approx(1.3, abs=0.12)


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("MP3", "MPEG_LAYER_III"),
        ("M4A", ""),
    ],
)
def test_flipped_bits_give_sound_or_a_refusal_and_nothing_else(form: str, subtype: str) -> None:
    data = muxed("ipod", "aac", 44_100) if form == "M4A" else written(form, subtype)
    rng = random.Random(form)
    statuses = set()
    for _ in range(80):
        broken = bytearray(data)
        for _ in range(rng.choice([1, 4, 40])):
            broken[rng.randrange(len(broken) if rng.random() < 0.5 else 60)] ^= 1 << rng.randrange(
                8
            )
        try:
            sound = loaded(bytes(broken))
        except ApplianceError as error:
            statuses.add(error.status)
        else:
            assert np.isfinite(sound.samples).all()
            assert len(sound.samples) <= POLICY.max_seconds * RATE
    assert statuses <= {400, 422}


@pytest.mark.parametrize(("environment", "code"), [(ENVIRONMENT, 0), ({}, 1)])
def test_librosa_loads_where_numba_can_write_nowhere(
    environment: dict[str, str], code: int
) -> None:
    told = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []  # as in a container whose folders are all read-only
import librosa.filters
librosa.filters.mel(sr=16_000, n_fft=400)
"""
    ran = subprocess.run(
        [sys.executable, "-c", told],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == code, ran.stderr
    assert ("no locator available" in ran.stderr) == bool(code)
