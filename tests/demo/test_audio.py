"""What the generator says of its sounds, held against librosa."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import pairwise

import librosa
import numpy as np
import pytest

from tools.demo import audio, speech
from tools.demo.audio import RATE, Samples, Sound
from tools.demo.audio_questions import about_sound, caption
from tools.demo.speech import Speaker, Voice

SEEDS = range(24)
HOP = 128
MAKERS = {
    "beeps": audio.random_beeps,
    "glide": audio.random_glide,
    "tone": audio.random_tone,
    "pair": audio.random_pair,
    "digits": audio.random_digits,
}


@pytest.fixture(scope="module")
def speaker() -> Iterator[Speaker]:
    with Speaker() as one:
        yield one


def made(kind: str, seed: int, speaker: Speaker) -> tuple[Sound, Samples, str]:
    """A sound, its samples and the answer to the question about it."""
    rng = random.Random(seed)
    sound = MAKERS[kind](rng)
    samples = audio.make(sound, rng, speaker)
    return sound, samples, about_sound(sound, rng)[0].answer


def loud_parts(samples: Samples) -> list[tuple[int, int]]:
    """Where it is loud, in samples; parts less than 40 ms apart are one."""
    joined: list[tuple[int, int]] = []
    for start, end in librosa.effects.split(
        samples, top_db=14, frame_length=2 * HOP, hop_length=HOP
    ):
        if joined and start - joined[-1][1] < 0.04 * RATE:
            joined[-1] = (joined[-1][0], int(end))
        else:
            joined.append((int(start), int(end)))
    return [(start, end) for start, end in joined if end - start > 0.03 * RATE]


def pitches(samples: Samples) -> np.ndarray:
    """Hertz, frame by frame, of the loud part; its ends left out."""
    start, end = loud_parts(samples)[0][0], loud_parts(samples)[-1][1]
    found = librosa.yin(
        samples[start:end], fmin=90, fmax=4000, sr=RATE, frame_length=1024, hop_length=HOP
    )
    return found[len(found) // 8 : -len(found) // 8]


def strongest(samples: Samples) -> float:
    """Hertz of the strongest partial; of these waves that is the first."""
    spectrum = np.abs(librosa.stft(samples, n_fft=4096)).mean(axis=1)
    return float(librosa.fft_frequencies(sr=RATE, n_fft=4096)[spectrum.argmax()])


@pytest.mark.parametrize("kind", MAKERS)
def test_equal_seeds_make_equal_sounds(kind: str, speaker: Speaker) -> None:
    sound, samples, answer = made(kind, 3, speaker)
    made(kind, 4, speaker)  # what was spoken between leaves no trace
    assert made(kind, 3, speaker)[0] == sound
    assert made(kind, 3, speaker)[2] == answer
    np.testing.assert_array_equal(made(kind, 3, speaker)[1], samples)
    other = made(kind, 5, speaker)[1]
    assert len(other) != len(samples) or np.abs(other - samples).max() > 0.01
    assert samples.dtype == np.float32
    assert np.abs(samples).max() == pytest.approx(sound.level, rel=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_as_many_beeps_are_found_as_are_said(seed: int, speaker: Speaker) -> None:
    sound, samples, answer = made("beeps", seed, speaker)
    found = len(loud_parts(samples))
    assert re.findall(r"\d", answer) == [str(found)]
    assert str(found) in caption(sound)


def test_every_number_of_beeps_comes_up() -> None:
    counts = {len(audio.random_beeps(random.Random(seed)).tones) for seed in range(200)}
    assert counts == set(range(1, 10))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_pitch_goes_where_it_is_said_to_go(seed: int, speaker: Speaker) -> None:
    sound, samples, answer = made("glide", seed, speaker)
    found = pitches(samples)
    rises = np.median(found[-len(found) // 4 :]) > np.median(found[: len(found) // 4])
    assert answer == ("It rises." if rises else "It falls.")
    assert ("rising" in caption(sound)) == rises


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tone_is_as_high_as_it_is_said_to_be(seed: int, speaker: Speaker) -> None:
    sound, samples, answer = made("tone", seed, speaker)
    found = strongest(samples)
    assert found == pytest.approx(sound.tones[0].first, rel=0.02)
    assert answer == ("It is low." if found < 400 else "It is high.")
    assert not 400 < found < 900


@pytest.mark.parametrize("seed", SEEDS)
def test_the_higher_of_two_tones_is_the_one_named(seed: int, speaker: Speaker) -> None:
    _, samples, answer = made("pair", seed, speaker)
    parts = loud_parts(samples)
    assert len(parts) == 2
    first, second = (float(np.median(pitches(samples[start:end]))) for start, end in parts)
    higher, lower = ("first", "second") if first > second else ("second", "first")
    assert answer in (f"The {higher} tone is higher.", f"The {lower} tone is lower.")


def test_a_digit_is_nearest_to_the_same_digit_said_otherwise(speaker: Speaker) -> None:
    """Each of the ten, by the distance of its MFCCs after dynamic time warping."""

    def mfccs(samples: Samples) -> np.ndarray:
        return librosa.feature.mfcc(y=samples, sr=RATE, n_mfcc=13, hop_length=HOP)[1:]

    told = [mfccs(speaker.say(word, Voice("en-us+m3", 150, 45))) for word in audio.DIGITS]
    right = 0
    for digit in range(10):
        sound = Sound("digits", digits=str(digit), voice=Voice("en-us+m1", 185, 60))
        heard = mfccs(audio.make(sound, random.Random(digit), speaker)[1600:-1600])
        costs = []
        for other in told:
            table, path = librosa.sequence.dtw(heard, other)
            costs.append(table[-1, -1] / len(path))
        right += int(np.argmin(costs)) == digit
    assert right >= 9


def test_digits_are_spoken_one_after_another(speaker: Speaker) -> None:
    for count in range(1, audio.MOST_DIGITS + 1):
        sound = audio.random_digits(random.Random(count), count=count)
        sound.pause, sound.noise, sound.voice = 0.3, None, Voice("en-us", 160)
        samples = audio.make(sound, random.Random(0), speaker)
        found = words(samples)
        gaps = [after[0] - before[1] for before, after in pairwise(found)]
        assert len(found) == count == len(sound.digits)
        assert all(gap > 0.2 * RATE for gap in gaps)
        answer = about_sound(sound, random.Random(0))[0].answer
        assert answer.endswith(f" {sound.digits}.")


def words(samples: Samples) -> list[tuple[int, int]]:
    parts: list[tuple[int, int]] = []
    for start, end in librosa.effects.split(samples, top_db=35, frame_length=512, hop_length=HOP):
        if parts and start - parts[-1][1] < 0.2 * RATE:
            parts[-1] = (parts[-1][0], int(end))
        else:
            parts.append((int(start), int(end)))
    return parts


def test_every_voice_speaks(speaker: Speaker) -> None:
    names = [f"en-us+{voice}" for voice in speech.VOICES + speech.HELD_OUT_VOICES if voice]
    names += [*speech.ACCENTS, *speech.HELD_OUT_ACCENTS]
    heard = {name: speaker.say("seven", Voice(name)) for name in names}
    assert all(0.15 * RATE < len(samples) < 1.5 * RATE for samples in heard.values())
    assert len({samples.tobytes() for samples in heard.values()}) > 0.9 * len(set(names))
    with pytest.raises(ValueError, match="no voice"):
        speaker.say("seven", Voice("nobody"))


def test_voices_that_are_held_out_are_never_trained_on() -> None:
    trained = {audio.random_voice(random.Random(seed)).name for seed in range(500)}
    held = {audio.random_voice(random.Random(seed), held_out=True).name for seed in range(500)}
    parts = [{part for name in names for part in name.split("+")} for names in (trained, held)]
    assert not parts[0] & parts[1]
    assert len(trained) > 100
    assert len(held) > 15
