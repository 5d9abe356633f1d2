"""Options about media that a request may bring, each below a ceiling of the recipe's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.api.fields.validation import unsupported
from appliance.api.fields.whole import whole
from appliance.config.schema import MediaConfig
from appliance.errors import bad_request
from appliance.request_options import CEILINGS

FIELD = "media_io_kwargs"


def read_media_options(given: Mapping[str, Any], media: MediaConfig) -> dict[str, dict[str, Any]]:
    """Options by modality, all of them allowed by the recipe. Raises ApplianceError 400."""
    read: dict[str, dict[str, Any]] = {}
    for modality, options in given.items():
        path = f"{FIELD}.{modality[:100]}"
        if options is None:
            continue
        if not isinstance(options, dict):
            raise bad_request(f"'{path}' must be an object.", path, "invalid_type")
        for name, value in options.items():
            where, option = f"{path}.{name[:100]}", f"{modality}.{name}"
            if value is None:
                continue
            if option not in media.allow_request_options:
                raise unsupported(where)
            ceiling = getattr(getattr(media, modality), CEILINGS[option])
            value = whole(value) if isinstance(ceiling, int) else value
            kinds = (int,) if isinstance(ceiling, int) else (int, float)
            if type(value) not in kinds or not 0 < value <= ceiling:
                raise bad_request(
                    f"'{where}' must be a number above 0, at most {ceiling:g}.",
                    where,
                    "invalid_value",
                )
            read.setdefault(modality, {})[name] = value
    return read
