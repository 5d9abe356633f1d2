"""Log lines, for people or one JSON object each."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from appliance.config.schema import LoggingConfig

# httpcore2 would log headers, and with them the signatures in URLs
NOISY = ("uvicorn", "uvicorn.error", "asyncio", "httpcore2", "httpx", "urllib3", "filelock")


class HumanFormatter(logging.Formatter):
    """`time level message key=value …`; values that could break the line are quoted."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        fields = _fields(record)
        shown = (f"{name}={_plain(value)}" for name, value in fields.items() if value is not None)
        return " ".join([line, *shown])


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(config: LoggingConfig) -> None:
    """Send all loggers to stderr in the form and from the level that `config` says."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if config.format == "json" else HumanFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def _plain(value: Any) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text else json.dumps(text)
