"""What a form asks of a sound."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from appliance.errors import bad_request

Format = Literal["json", "text", "srt", "verbose_json", "vtt"]
Granularity = Literal["segment", "word"]
LONGEST_PROMPT = 1 << 14  # characters
NUMBERS, TRUTHS = ("temperature",), ("stream",)
SPELLED = {"true": True, "false": False, "1": True, "0": False}
STREAMED = ("json", "text")

UNBUILT: dict[str, tuple[Any, ...]] = {  # fields of OpenAI's that would change the answer
    "chunking_strategy": (),
    "include": ([],),
    "keywords": ([],),
    "known_speaker_names": ([],),
    "known_speaker_references": ([],),
    "languages": ([],),
}


class TranscriptionRequest(BaseModel):
    """The fields beside the file."""

    model_config = ConfigDict(strict=True)

    model: str
    language: Annotated[str, Field(max_length=100)] | None = None
    prompt: Annotated[str, Field(max_length=LONGEST_PROMPT)] = ""
    response_format: Format = "json"
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0
    stream: bool = False
    timestamp_granularities: list[Granularity] = Field(default_factory=list)

    @property
    def words(self) -> bool:
        """Whether times of words are wanted."""
        return "word" in self.timestamp_granularities

    @property
    def segments(self) -> bool:
        """Whether segments are: unless words alone."""
        return not self.timestamp_granularities or "segment" in self.timestamp_granularities

    def check(self) -> None:
        """Raises ApplianceError for fields that contradict each other."""
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise bad_request(
                "'timestamp_granularities' needs 'response_format' to be 'verbose_json'.",
                "timestamp_granularities",
                "invalid_value",
            )
        if self.stream and self.response_format not in STREAMED:
            raise bad_request(
                f"'stream' goes with 'response_format' {' or '.join(STREAMED)}, and "
                f"'{self.response_format}' was given.",
                "stream",
                "invalid_value",
            )


def typed(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a form, which are all text, as the JSON that they would be.

    What cannot be read stays text, and is refused where its field is checked.
    """
    found = dict(fields)
    for name in NUMBERS:
        found[name] = _number(found.get(name))
    for name in TRUTHS:
        value = found.get(name)
        found[name] = SPELLED.get(value.lower(), value) if isinstance(value, str) else value
    return {name: value for name, value in found.items() if value not in (None, "")}


def _number(value: Any) -> Any:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return number if math.isfinite(number) else value
