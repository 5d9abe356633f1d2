"""Untrusted sound to the samples that a model hears: mono, at its rate, within the limits."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from appliance.errors import ApplianceError, bad_request, media_too_large, media_undecodable
from appliance.media.container import AUDIO_CODECS, AUDIO_FORMATS, lacks_media, opened
from appliance.media.extent import EBML, MOVIE_BOXES
from appliance.media.limits import AudioPolicy
from appliance.media.mp3 import counted
from appliance.media.prepare import PARAM, MediaSettings, Options, Prepared
from appliance.media.wave import is_wave, measured
from engine.models.family import Family

Samples = NDArray[np.float32]

MAX_CHANNELS = 8
RATES = range(1_000, 384_001)
BLOCK = 1 << 16  # samples of a channel that are read at once
QUALITY = "HQ"  # as librosa resamples, which takes a sound as a whole only
OGG_PAGE, FIRST_PAGE = re.compile(rb"OggS\0(.)", re.DOTALL), 2  # RFC 3533, 6
FORMATS = "WAV, MP3, FLAC, Ogg, Opus, M4A, WebM"


@dataclass(slots=True, frozen=True)
class Sound:
    """Mono `samples` at the rate asked for, and what they were made of."""

    samples: Samples
    seconds: float
    source_rate: int
    channels: int


class AudioPreparer:
    """Sound, decoded and resampled to what the family hears."""

    def __init__(self, family: Family, settings: MediaSettings) -> None:
        import_module("librosa.filters")  # for spectrograms: once, before workers are forked
        self._family = family
        self._policy = settings.audio

    def probe(self, data: bytes, options: Options) -> int | None:
        return None

    def decode(self, data: bytes, options: Options) -> Sound:
        return load_audio(data, self._family.audio_rate(), self._policy, PARAM)

    def preprocess(self, decoded: Sound, options: Options) -> Prepared:
        try:
            tokens = self._family.audio_tokens(len(decoded.samples))
        except ValueError:
            raise media_undecodable(
                f"The model cannot take a sound of {decoded.seconds:.2f} seconds.", PARAM
            ) from None
        return Prepared(tokens, self._family.preprocess_audio(decoded.samples))


def load_audio(data: bytes, rate: int, policy: AudioPolicy, param: str) -> Sound:
    """Sound of any format known by its content, as the mean of its channels at `rate` Hz.

    Equal to librosa's `to_mono` and `resample` of what soundfile reads. Raises ApplianceError: 400
    for a sound beyond the limits, 422 for one that cannot be decoded.
    """
    if len(data) > policy.max_bytes:
        raise media_too_large("audio", policy.max_bytes, param)
    listener = _Listener(rate, policy, param)
    try:
        with _source(data, param) as blocks:
            for source_rate, block in blocks:
                listener.hear(source_rate, block)
    except (ApplianceError, MemoryError):
        raise
    except (soundfile.SoundFileError, av.FFmpegError, ValueError, LookupError) as failure:
        raise media_undecodable("The audio is damaged and cannot be decoded.", param) from failure
    return listener.sound()


class _Listener:
    """Takes blocks of sound in; holds no more than the mono result."""

    def __init__(self, rate: int, policy: AudioPolicy, param: str) -> None:
        self._rate = rate
        self._policy = policy
        self._param = param
        self._resampler: soxr.ResampleStream | None = None
        self._parts: list[Samples] = []
        self._source_rate = self._channels = self._heard = 0

    def hear(self, rate: int, block: Samples) -> None:
        """`block` is `[samples, channels]`."""
        if not self._source_rate:
            self._begin(rate, block.shape[1])
        if (rate, block.shape[1]) != (self._source_rate, self._channels):
            raise self._undecodable("changes its rate or channels on the way")
        self._heard += len(block)
        if self._heard > self._policy.max_seconds * rate:
            raise bad_request(
                f"The audio is longer than the limit of {self._policy.max_seconds:g} seconds.",
                self._param,
                "media_too_large",
            )
        if not len(block):
            return
        mono = block.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise self._undecodable("has samples that are no numbers")
        self._parts.append(self._resampled(mono, last=False))

    def sound(self) -> Sound:
        """All that was heard."""
        if not self._heard:
            raise self._undecodable("has no samples")
        rest = np.zeros(0, np.float32)
        samples = np.concatenate([*self._parts, self._resampled(rest, last=True)])
        wanted = math.ceil(self._heard * self._rate / self._source_rate)
        samples = np.pad(samples[:wanted], (0, max(0, wanted - len(samples))))
        seconds = self._heard / self._source_rate
        return Sound(samples, seconds, self._source_rate, self._channels)

    def _begin(self, rate: int, channels: int) -> None:
        if rate not in RATES:
            raise self._undecodable(f"claims to have {rate} samples a second")
        if channels > MAX_CHANNELS:
            raise bad_request(
                f"The audio has {channels} channels; the limit is {MAX_CHANNELS}.",
                self._param,
                "media_too_large",
            )
        self._source_rate, self._channels = rate, channels
        if rate != self._rate:
            self._resampler = soxr.ResampleStream(rate, self._rate, 1, quality=QUALITY)

    def _resampled(self, mono: Samples, last: bool) -> Samples:
        if self._resampler is None:
            return mono
        made: Samples = self._resampler.resample_chunk(mono, last=last)
        return made

    def _undecodable(self, what: str) -> ApplianceError:
        return media_undecodable(f"The audio {what}.", self._param)


Blocks = Iterator[tuple[int, Samples]]


@contextmanager
def _source(data: bytes, param: str) -> Iterator[Blocks]:
    """Rates and blocks of a file of whatever its first bytes say that it is."""
    simple = False  # read by libsndfile, which believes some counts of headers
    if is_wave(data):
        whole, simple = measured(data), True
        if whole is None:
            raise _cut_off(param)
        data = whole
    elif data[:4] == b"OggS":
        simple = not _is_chained(data)
    elif data[:3] == b"ID3" or _has_mpeg_layer(data):
        data, simple = counted(data), True
    elif not _is_container(data):
        raise media_undecodable(
            f"The audio is in none of the formats read here ({FORMATS}), or is damaged.", param
        )
    if simple:
        try:
            file = soundfile.SoundFile(io.BytesIO(data))
        except soundfile.SoundFileError:
            pass  # a codec that only FFmpeg has, or damage that it will find
        else:
            with file:
                yield _read(file)
            return
    with opened(data, AUDIO_FORMATS, AUDIO_CODECS) as container:
        stream = next(iter(container.streams.audio), None)
        # a stream in a codec that FFmpeg does not know has no context
        if stream is None or getattr(stream.codec_context, "name", "") not in AUDIO_CODECS:
            raise media_undecodable("The audio has no sound in a codec that is read here.", param)
        if lacks_media(data, container, stream):
            raise _cut_off(param)
        stream.codec_context.thread_count = 1
        yield _decode(container.decode(stream))


def _is_chained(data: bytes) -> bool:
    """Whether one Ogg stream follows another, of which libsndfile reads the first."""
    flags = [match[1][0] & FIRST_PAGE for match in OGG_PAGE.finditer(data)]
    return 0 in flags and FIRST_PAGE in flags[flags.index(0) :]


def _has_mpeg_layer(data: bytes) -> bool:
    return data[:1] == b"\xff" and data[1:2] >= b"\xe0" and bool(data[1] >> 1 & 3)


def _is_container(data: bytes) -> bool:
    """MP4, Matroska and WebM, FLAC, or bare AAC."""
    adts = len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0
    return data[4:8] in MOVIE_BOXES or data[:4] in (EBML, b"fLaC") or adts


def _read(file: soundfile.SoundFile) -> Blocks:
    yield file.samplerate, np.zeros((0, file.channels), np.float32)  # refused before it is read
    while True:
        block: Samples = file.read(BLOCK, dtype="float32", always_2d=True)
        if not len(block):
            break
        yield file.samplerate, block


def _decode(frames: Iterator[av.AudioFrame]) -> Blocks:
    planar = av.AudioResampler(format="fltp")
    for frame in frames:
        for converted in planar.resample(frame):
            yield converted.sample_rate, np.asarray(converted.to_ndarray().T, np.float32)


def _cut_off(param: str) -> ApplianceError:
    return media_undecodable("The audio is cut off.", param)
