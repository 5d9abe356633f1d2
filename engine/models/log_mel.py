"""From samples to the log-mel spectrogram that Whisper's encoder hears."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from engine.errors import ModelUnsupported
from engine.models.settings import settings_of

LOWEST_POWER = 1e-10
RANGE = 8.0  # decades below the loudest that are kept
HIGHEST_HZ = 8000.0
AT_ONCE = 256  # frames whose spectra are there together: few enough to stay in the processor


def sound_options(folder: Path) -> dict[str, Any]:
    """The feature extractor's settings, looked for where transformers looks."""
    for part in ("feature_extractor", "audio_processor"):
        nested = settings_of(folder / "processor_config.json", part)
        if nested:
            return nested
    return settings_of(folder / "preprocessor_config.json")


class LogMel:
    """Whisper's features: a power spectrum every `hop` samples, `bands` wide, logarithmic.

    Source: `log_mel_spectrogram` of openai/whisper (audio.py). Raises ModelUnsupported for settings
    that add randomness.
    """

    def __init__(self, options: dict[str, Any], bands: int) -> None:
        self.rate = int(options.get("sampling_rate", 16_000))
        self.hop = int(options.get("hop_length", 160))
        self.bands = int(options.get("feature_size", bands))
        if options.get("dither"):
            raise ModelUnsupported(
                "dithered sound would differ from time to time: dither must be 0"
            )
        self._size = int(options.get("n_fft", 400))

    def frames(self, samples: int) -> int:
        """Columns of the spectrogram: one for each hop begun, at least two."""
        return max(2, -(-samples // self.hop))

    def spectrogram(
        self, samples: NDArray[np.float32], frames: int | None = None
    ) -> NDArray[np.float32]:
        """`[bands, frames]` of mono `samples` `[samples]`, both float32; the first so many of them.

        To fill the last frame, silence follows.
        """
        frames, side = frames or self.frames(len(samples)), self._size // 2
        missing = max(0, frames * self.hop - len(samples))
        # a frame's middle is where its hop begins
        around = np.pad(np.pad(samples, (0, missing)), side, mode="reflect")
        pieces = sliding_window_view(around, self._size)[:: self.hop][:frames]
        window = np.hanning(self._size + 1)[:-1].astype(np.float32)
        found = np.empty((self.bands, frames), np.float32)
        for first in range(0, frames, AT_ONCE):
            part = slice(first, min(first + AT_ONCE, frames))
            spectrum = np.fft.rfft(pieces[part] * window)
            power = np.square(spectrum.real) + np.square(spectrum.imag)
            np.matmul(self._filters, power.T, out=found[:, part])
        np.log10(np.maximum(found, LOWEST_POWER, out=found), out=found)
        np.maximum(found, found.max() - np.float32(RANGE), out=found)
        found += 4.0
        found /= 4.0
        return found

    @cached_property
    def _filters(self) -> NDArray[np.float32]:
        """`[bands, size // 2 + 1]`: triangles of equal area, even on Slaney's mel scale."""
        from librosa.filters import mel  # takes a second and 110 MB, which only sound is worth

        highest = min(self.rate / 2, HIGHEST_HZ)
        filters: NDArray[np.float64] = mel(
            sr=self.rate,
            n_fft=self._size,
            n_mels=self.bands,
            fmax=highest,
            htk=False,
            norm="slaney",
            dtype=np.float64,
        )
        return filters.astype(np.float32)
