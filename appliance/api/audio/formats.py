"""A transcript as it is answered: JSON, plain text, or subtitles.

Subtitles are written as openai/whisper writes them (utils.py): SubRip's, and WebVTT's
(https://www.w3.org/TR/webvtt1/).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from appliance.generation.transcribing import Segment  # loads the model's libraries

MEDIA_TYPES = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}


def text_of(segments: Sequence[Segment]) -> str:
    """All that is said."""
    return "".join(segment.text for segment in segments).strip()


def verbose(segments: Sequence[Segment], temperature: float) -> list[dict[str, Any]]:
    """OpenAI's segments."""
    return [
        {
            "id": number,
            "seek": segment.seek,
            "start": segment.start,
            "end": segment.end,
            "text": segment.text,
            "tokens": segment.tokens,
            "temperature": temperature,
            "avg_logprob": segment.logprob,
            "compression_ratio": segment.compression,
            "no_speech_prob": segment.no_speech,
        }
        for number, segment in enumerate(segments)
    ]


def words(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    """OpenAI's words."""
    return [
        {"word": word.text, "start": word.start, "end": word.end}
        for segment in segments
        for word in segment.words
    ]


def srt(segments: Sequence[Segment]) -> str:
    """SubRip's subtitles."""
    return "\n".join(
        f"{number}\n{_time(one.start, ',')} --> {_time(one.end, ',')}\n{_cue(one)}\n"
        for number, one in enumerate(segments, 1)
    )


def vtt(segments: Sequence[Segment]) -> str:
    """WebVTT's subtitles."""
    cues = [
        f"{_time(one.start, '.', brief=True)} --> {_time(one.end, '.', brief=True)}\n{_cue(one)}\n"
        for one in segments
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _cue(segment: Segment) -> str:
    """Its text on one line, in which nothing looks like a time or an end."""
    return " ".join(segment.text.split()).replace("-->", "->")


def _time(seconds: float, mark: str, *, brief: bool = False) -> str:
    """`01:02:03,456`; where it is brief, hours only if there are any."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    told = f"{minutes:02d}:{milliseconds // 1000:02d}{mark}{milliseconds % 1000:03d}"
    return told if brief and not hours else f"{hours:02d}:{told}"
