"""Ending a rendered conversation inside its last message, for the model to go on with."""

from __future__ import annotations

from typing import Any

from appliance.errors import bad_request
from appliance.prompt.content import text_part
from appliance.prompt.sentinels import Marks


def with_end(content: Any, marks: Marks) -> Any:
    """The content with the end mark after its last text; its space shows if it gets trimmed.

    Raises ApplianceError for content without text.
    """
    mark = marks.end + " "
    if isinstance(content, str):
        return content + mark
    for place in range(len(content or []) - 1, -1, -1):
        if content[place]["type"] == "text":
            ended = list(content)
            ended[place] = text_part(content[place]["text"] + mark)
            return ended
    raise bad_request(
        "'continue_final_message' needs a last message with text.",
        "continue_final_message",
        "invalid_value",
    )


def cut_at_end(text: str, marks: Marks) -> str:
    """The rendered text up to the end mark. Raises ApplianceError where it is not there."""
    place = text.rfind(marks.end)
    if place < 0:
        raise bad_request(
            "The model's chat template changes the last message; it cannot be continued.",
            "continue_final_message",
            "chat_template_failed",
        )
    kept = text[place + len(marks.end) :].startswith(" ")
    text = text[:place].replace(marks.end, "")
    return text if kept else text.rstrip()
