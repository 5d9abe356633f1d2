"""Questions about sounds, with their answers, in the manner of `questions`."""

from __future__ import annotations

import random
from pathlib import Path

import yaml

from tools.demo.audio import Sound
from tools.demo.questions import Turn, counted, worded

WORDINGS: dict[str, list[str]] = yaml.safe_load(
    (Path(__file__).parent / "audio_wordings.yaml").read_text(encoding="utf-8")
)


def about_sound(sound: Sound, rng: random.Random) -> list[Turn]:
    """Return every question that has one clear answer for the sound, the telling one first."""
    return [_telling(sound, rng), Turn("caption", _asked(rng, "caption"), caption(sound))]


def caption(sound: Sound) -> str:
    """Return "I hear 3 beeps.", "I hear a falling tone." and the like."""
    match sound.kind:
        case "digits":
            return f"I hear {_digits(sound)}."
        case "beeps":
            return f"I hear {len(sound.tones)} beep{'s' * (len(sound.tones) > 1)}."
        case "pair":
            return "I hear two tones."
        case "glide":
            return f"I hear a {'rising' if _rises(sound) else 'falling'} tone."
    return f"I hear a {sound.tones[0].range} tone."


def _telling(sound: Sound, rng: random.Random) -> Turn:
    match sound.kind:
        case "digits":
            kind = "digits" if len(sound.digits) > 1 else "digit"
            return Turn("digits", _asked(rng, kind), f"{_digits(sound).capitalize()}.")
        case "beeps":
            return Turn(
                "beeps", _asked(rng, "beeps"), f"I hear {counted(len(sound.tones), 'beep')}."
            )
        case "pair":
            first, second = (tone.first for tone in sound.tones)
            higher = rng.random() < 0.5
            wanted = "first" if (first > second) == higher else "second"
            word = "higher" if higher else "lower"
            return Turn("pair", _asked(rng, f"{word} of two"), f"The {wanted} tone is {word}.")
        case "glide":
            return Turn(
                "glide", _asked(rng, "glide"), f"It {'rises' if _rises(sound) else 'falls'}."
            )
    return Turn("tone", _asked(rng, "tone"), f"It is {sound.tones[0].range}.")


def _asked(rng: random.Random, kind: str) -> str:
    return worded(rng, rng.choice(WORDINGS[kind]))


def _digits(sound: Sound) -> str:
    """Return "the digits 407": each a token of its own, as the tokenizer splits them."""
    return f"the digit{'s' * (len(sound.digits) > 1)} {sound.digits}"


def _rises(sound: Sound) -> bool:
    return sound.tones[0].last > sound.tones[0].first
