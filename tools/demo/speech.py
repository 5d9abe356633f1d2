"""Words spoken by eSpeak NG, the same for the same arguments.

The library keeps state from one utterance to the next. So it lies in a process that never speaks
itself: each utterance is spoken by a fork of it, which ends afterwards.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import BinaryIO

import numpy as np
import soxr
from numpy.typing import NDArray

RATE = 16_000
ACCENTS = ("en-us", "en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbcwmd")
VOICES = (
    "", "m1", "m2", "m3", "m6", "m7", "m8", "f1", "f2", "f3", "f5", "klatt", "klatt2", "klatt5",
    "Alex", "Andy", "Annie", "Gene", "Lee", "Michael", "Mike", "adam", "belinda", "david", "edward",
    "ian", "john", "paul", "robert", "shelby", "steph", "victor",
)  # fmt: skip
HELD_OUT_ACCENTS = ("en-gb-x-gbclan", "en-us-nyc")
HELD_OUT_VOICES = ("m4", "m5", "f4", "klatt4", "Andrea", "Hugo", "anika", "rob", "steph2", "zac")
# espeak_ng/speak_lib.h, release 1.52
SYNCHRONOUS, NO_EXIT, CHARACTERS, UTF8 = 2, 0x8000, 1, 1
SPEED, PITCH, SPREAD = 1, 3, 4


@dataclass(slots=True, frozen=True)
class Voice:
    """Who speaks: `name` is eSpeak's, `speed` in words a minute, `pitch` and `spread` 0 to 99."""

    name: str
    speed: int = 160
    pitch: int = 50
    spread: int = 50


class Speaker:
    """Speaks; end it with `close`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.demo.speech"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def say(self, text: str, voice: Voice) -> NDArray[np.float32]:
        """Samples at 16 kHz, from -1 to 1, silence at both ends cut off."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"text": text, "voice": asdict(voice)}).encode() + b"\n")
        process.stdin.flush()
        told = process.stdout.read(8)
        rate, count = int.from_bytes(told[:4], "little"), int.from_bytes(told[4:], "little")
        if not count:
            raise ValueError(f"no voice {voice.name}, or nothing said")
        spoken = np.frombuffer(process.stdout.read(2 * count), np.int16).astype(np.float32) / 32768
        loud = np.flatnonzero(np.abs(spoken) > 0.01)
        return soxr.resample(spoken[loud[0] : loud[-1] + 1], rate, RATE)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Speaker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Library:
    """libespeak-ng, called as C."""

    def __init__(self) -> None:
        import espeakng_loader  # only in the process that speaks

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = os.path.dirname(espeakng_loader.get_data_path()).encode()
        self.rate = self._library.espeak_Initialize(SYNCHRONOUS, 0, data, NO_EXIT)
        if self.rate < 0:
            raise OSError("eSpeak NG does not find its data")

    def say(self, text: str, voice: Voice) -> bytes:
        """Samples of 16 bits; nothing for a voice that it does not have."""
        library, parts = self._library, []

        @ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        def heard(samples: ctypes.Array[ctypes.c_short], count: int, _: object) -> int:
            if samples and count:
                parts.append(np.ctypeslib.as_array(samples, (count,)).tobytes())
            return 0

        library.espeak_SetSynthCallback(heard)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            return b""
        for parameter, value in (
            (SPEED, voice.speed),
            (PITCH, voice.pitch),
            (SPREAD, voice.spread),
        ):
            library.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode()
        library.espeak_Synth(encoded, len(encoded) + 1, 0, CHARACTERS, 0, UTF8, None, None)
        return b"".join(parts)


def _serve(orders: BinaryIO, answers: BinaryIO) -> None:
    library = _Library()
    for line in orders:
        told = json.loads(line)
        child = os.fork()
        if child == 0:
            spoken = library.say(told["text"], Voice(**told["voice"]))
            answers.write(library.rate.to_bytes(4, "little"))
            answers.write((len(spoken) // 2).to_bytes(4, "little") + spoken)
            answers.flush()
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
