"""Sounds to be heard: beeps, tones, glides and spoken digits, and what is true of them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tools.demo import speech
from tools.demo.speech import RATE, Speaker, Voice

Samples = NDArray[np.float32]

WAVES = ("sine", "sine", "triangle", "square", "saw")
LOW, HIGH = (110.0, 280.0), (1100.0, 2800.0)  # hertz; between them a tone is neither
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MOST_BEEPS, MOST_DIGITS = 9, 4
EDGE = 0.006  # seconds over which a tone comes and goes: none clicks


@dataclass(slots=True, frozen=True)
class Tone:
    """From `start` on for `seconds`, from `first` to `last` hertz, evenly on a keyboard."""

    start: float
    seconds: float
    first: float
    last: float
    wave: str = "sine"
    loudness: float = 1.0

    @property
    def end(self) -> float:
        return self.start + self.seconds

    @property
    def range(self) -> str | None:
        """Return "low" or "high", or None where it is neither."""
        pitches = self.first, self.last
        if max(pitches) <= LOW[1]:
            return "low"
        return "high" if min(pitches) >= HIGH[0] else None


@dataclass(slots=True)
class Sound:
    """A sound before it is made. `digits` are spoken by `voice`; else there are only tones.

    `level` is that of its loudest sample, `noise` that of the noise beside it, in decibels.
    """

    kind: str
    tones: list[Tone] = field(default_factory=list)
    digits: str = ""
    voice: Voice | None = None
    pause: float = 0.0  # between digits
    lead: float = 0.1  # silence before and after
    level: float = 0.5
    noise: float | None = None


def random_beeps(rng: random.Random, count: int | None = None) -> Sound:
    """Return up to nine beeps, apart from each other for longer than a room rings."""
    count = count or rng.randint(1, MOST_BEEPS)
    pitch, wave = _pitch(rng, 250, 2500), rng.choice(WAVES)
    alike, steady = rng.random() < 0.6, rng.random() < 0.5
    seconds, gap = rng.uniform(0.06, 0.25), rng.uniform(0.12, 0.4)
    tones, at = [], 0.0
    for _ in range(count):
        hertz = pitch if alike else _pitch(rng, 250, 2500)
        lasting = seconds if steady else rng.uniform(0.06, 0.25)
        tones.append(Tone(at, lasting, hertz, hertz, wave, 1.0 if alike else rng.uniform(0.5, 1)))
        at += lasting + (gap if steady else rng.uniform(0.12, 0.4))
    return _finished(Sound("beeps", tones), rng)


def random_glide(rng: random.Random) -> Sound:
    """Return one tone that rises or falls by a fifth or more."""
    low = _pitch(rng, 150, 1200)
    high = low * rng.uniform(1.5, 2.5)
    first, last = (low, high) if rng.random() < 0.5 else (high, low)
    tone = Tone(0, rng.uniform(0.4, 1.8), first, last, rng.choice(WAVES))
    return _finished(Sound("glide", [tone]), rng)


def random_tone(rng: random.Random) -> Sound:
    """Return one steady tone, high or low."""
    hertz = _pitch(rng, *rng.choice((LOW, HIGH)))
    tone = Tone(0, rng.uniform(0.3, 1.5), hertz, hertz, rng.choice(WAVES))
    return _finished(Sound("tone", [tone]), rng)


def random_pair(rng: random.Random) -> Sound:
    """Return two tones, one a third or more above the other."""
    low = _pitch(rng, 150, 1500)
    pitches = [low, low * rng.uniform(1.3, 3.0)]
    rng.shuffle(pitches)
    seconds, wave = rng.uniform(0.25, 0.8), rng.choice(WAVES)
    later = seconds + rng.uniform(0.15, 0.5)
    tones = [Tone(0, seconds, pitches[0], pitches[0], wave)]
    tones.append(Tone(later, seconds, pitches[1], pitches[1], wave))
    return _finished(Sound("pair", tones), rng)


def random_digits(rng: random.Random, *, held_out: bool = False, count: int | None = None) -> Sound:
    """Return one to four digits; held-out voices are never those that are trained on."""
    digits = "".join(rng.choices("0123456789", k=count or rng.randint(1, MOST_DIGITS)))
    sound = Sound("digits", digits=digits, voice=random_voice(rng, held_out=held_out))
    sound.pause = rng.choice((0.0, rng.uniform(0.05, 0.35)))
    return _finished(sound, rng)


def random_voice(rng: random.Random, *, held_out: bool = False) -> Voice:
    accent = rng.choice(speech.HELD_OUT_ACCENTS if held_out else speech.ACCENTS)
    variant = rng.choice(speech.HELD_OUT_VOICES if held_out else speech.VOICES)
    name = f"{accent}+{variant}" if variant else accent
    return Voice(name, rng.randint(120, 200), rng.randint(20, 80), rng.randint(30, 70))


def make(sound: Sound, rng: random.Random, speaker: Speaker) -> Samples:
    """Return mono samples at 16 kHz, with the noise and the level that it says."""
    heard = _spoken(sound, speaker) if sound.digits else _toned(sound.tones, rng)
    samples = np.pad(heard, round(sound.lead * RATE))
    if sound.noise is not None:
        hiss = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(samples))
        loud = np.sqrt(np.mean(heard[np.abs(heard) > 0.01] ** 2))
        samples = samples + hiss * loud * 10 ** (sound.noise / 20)
    return (samples * (sound.level / np.abs(samples).max())).astype(np.float32)


def _finished(sound: Sound, rng: random.Random) -> Sound:
    sound.lead = rng.uniform(0.05, 0.4)
    sound.level = 10 ** (rng.uniform(-24, -1) / 20)
    sound.noise = rng.uniform(-45, -18) if rng.random() < 0.5 else None
    return sound


def _pitch(rng: random.Random, low: float, high: float) -> float:
    return float(low * (high / low) ** rng.random())


def _spoken(sound: Sound, speaker: Speaker) -> Samples:
    assert sound.voice is not None
    words = [DIGITS[int(digit)] for digit in sound.digits]
    if not sound.pause:
        return speaker.say(" ".join(words), sound.voice)
    silence = np.zeros(round(sound.pause * RATE), np.float32)
    parts = [part for word in words for part in (speaker.say(word, sound.voice), silence)]
    return np.concatenate(parts[:-1])


def _toned(tones: list[Tone], rng: random.Random) -> Samples:
    samples = np.zeros(round(max(tone.end for tone in tones) * RATE) + 1, np.float32)
    for tone in tones:
        first = round(tone.start * RATE)
        made = _wave(tone, rng.random())
        samples[first : first + len(made)] += made
    return samples


def _wave(tone: Tone, phase: float) -> Samples:
    """A tone of few harmonics: none lies above half the rate, where it would fold back."""
    count = round(tone.seconds * RATE)
    along = np.arange(count) / count
    hertz = tone.first * (tone.last / tone.first) ** along
    turns = phase + np.cumsum(hertz) / RATE
    top = int(0.45 * RATE / max(tone.first, tone.last))
    made = np.zeros(count)
    for number, share in _harmonics(tone.wave, top):
        made += share * np.sin(2 * np.pi * number * turns)
    edge = min(1.0, EDGE * RATE / count)
    shape = np.clip(np.minimum(along, 1 - along) / edge, 0, 1)
    return (tone.loudness * made * shape / np.abs(made).max()).astype(np.float32)


def _harmonics(wave: str, top: int) -> list[tuple[int, float]]:
    """Numbers and shares of a wave's Fourier series up to the `top`-th, twelve at most."""
    numbers = range(1, min(max(top, 1), 12) + 1)
    if wave == "sine":
        return [(1, 1.0)]
    if wave == "saw":
        return [(number, 1 / number) for number in numbers]
    odd = [number for number in numbers if number % 2]
    if wave == "square":
        return [(number, 1 / number) for number in odd]
    return [(number, (-1) ** (number // 2) / number**2) for number in odd]
