"""Media parts of a message, each read as the sources of the items that it brings."""

from __future__ import annotations

import re
from typing import Any

from appliance.api.fields.text import read_text
from appliance.errors import ApplianceError, bad_request
from appliance.media.data_url import is_data_url
from appliance.media.source import EmbeddingFields, Source

KINDS = {  # what an item of a part's type is prepared as, and where in the part its content is
    "image_url": ("image", ".url"),
    "video_url": ("video", ".url"),
    "audio_url": ("audio", ".url"),
    "input_audio": ("audio", ".data"),
    "image_embeds": ("image_embeds", ""),
}
DETAILS = ("auto", "low", "high")
FORMAT = re.compile(r"[A-Za-z0-9.+-]{1,32}")
LONGEST_UUID = 256
FIELDS = {"input_audio": ("data", "format"), "image_url": ("url", "detail")}


def read_media_part(
    type_: str, part: dict[str, Any], path: str, typed: bool, ignored: list[str]
) -> list[Source]:
    """The item of the part at `path`, or the several that a list of embeddings stands for.

    With a `uuid` the media may be left out. Raises ApplianceError with the path of the fault.
    """
    kind, inside = KINDS[type_]
    uuid = _uuid(part.get("uuid"), f"{path}.uuid")
    value, where = part.get(type_), f"{path}.{type_}"
    if uuid is not None and value in (None, {}):
        return [Source(kind, None, path, where, inside, uuid)]
    if value is None:
        raise _missing(where)
    if type_ != "image_embeds":
        url = _url(type_, value, where, typed, ignored)
        return [Source(kind, url, path, where, inside, uuid)]
    read = _embeds(value, where)
    if uuid is not None and len(read) > 1:
        raise bad_request(f"'{path}.uuid' can stand for one item only.", f"{path}.uuid")
    return [Source(kind, content, path, field, uuid=uuid) for field, content in read]


def _url(kind: str, value: Any, path: str, typed: bool, ignored: list[str]) -> str:
    """The URL of an item; `input_audio` makes a data: URL."""
    if isinstance(value, str) and not typed and kind != "input_audio":
        return read_text(value, path)
    known = FIELDS.get(kind, ("url",))
    if not isinstance(value, dict):
        raise bad_request(f"'{path}' must be an object with a '{known[0]}'.", path, "invalid_type")
    ignored.extend(
        f"{path}.{name}" for name, given in value.items() if name not in known and given is not None
    )
    if kind == "input_audio":
        form = read_text(value.get("format"), f"{path}.format")
        if not FORMAT.fullmatch(form):
            raise bad_request(
                f"'{path}.format' must be a name such as wav or mp3.", f"{path}.format"
            )
        data = read_text(value.get("data"), f"{path}.data")
        if is_data_url(data):  # as other providers' clients send it; nothing is fetched from here
            return data
        return f"data:audio/{form};base64,{data.replace('#', '%23')}"  # which is no fragment here
    detail = value.get("detail") if kind == "image_url" else None
    if detail not in (None, "", *DETAILS):
        raise bad_request(
            f"'{path}.detail' must be one of {', '.join(DETAILS)}.",
            f"{path}.detail",
            "invalid_value",
        )
    return read_text(value.get("url"), f"{path}.url")


def _embeds(value: Any, path: str) -> list[tuple[str, EmbeddingFields]]:
    """Embeddings of one item or of several, each with its path."""
    if not isinstance(value, list):
        return [(path, _one_embeds(value, path))]
    if not value:
        raise bad_request(f"'{path}' must not be empty.", path, "invalid_value")
    return [
        (where, _one_embeds(one, where))
        for where, one in ((f"{path}[{index}]", one) for index, one in enumerate(value))
    ]


def _one_embeds(value: Any, path: str) -> EmbeddingFields:
    """Text, or an object of text with a grid beside it, which may be a list of numbers."""
    if isinstance(value, dict):
        for name, given in value.items():
            if name not in ("image_embeds", "image_grid_thw"):
                raise bad_request(
                    f"'{path}' has a field that is neither 'image_embeds' nor 'image_grid_thw'.",
                    path,
                    "invalid_value",
                )
            if not (name == "image_grid_thw" and isinstance(given, list)):
                read_text(given, f"{path}.{name}")
        if "image_embeds" not in value:
            raise _missing(f"{path}.image_embeds")
        return EmbeddingFields(value)
    return EmbeddingFields({"image_embeds": read_text(value, path)})


def _uuid(uuid: Any, path: str) -> str | None:
    """A client's own name for an item; an empty one is none."""
    if uuid in (None, ""):
        return None
    if len(read_text(uuid, path)) > LONGEST_UUID or not uuid.isprintable():
        raise bad_request(
            f"'{path}' must be 1 to {LONGEST_UUID} printable characters.", path, "invalid_value"
        )
    return str(uuid)


def _missing(path: str) -> ApplianceError:
    return bad_request(f"'{path}' is required.", path, "missing_required_parameter")
