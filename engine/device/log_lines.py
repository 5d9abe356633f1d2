"""Log lines of every process, for people or one JSON object each, that nobody else can write into.

What clients, files and libraries made part of a line is escaped, so that it stays one line and
moves no cursor, and URLs keep no more than their host: what follows may be a signature.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

Hide = Callable[[str], str]

# whose loggers may say anything; others log URLs, headers and commands, and change what they log
OURS = ("appliance", "engine")
LONGEST = 2000  # characters of one value: a path may have 64 KiB
# lengths are bounded where a client could make a search start everywhere and go on to the end
URL = re.compile(
    r"\b([A-Za-z][A-Za-z0-9+.-]{0,20})://(?:[^\s/?#'\"<>]*@)?([^\s/?#'\"<>@]*)[^\s'\"<>]*"
)
DATA_URL = re.compile(r"\bdata:[^\s'\"<>,]{0,200},[^\s'\"<>]*")
WORD = re.compile(r"[^\s'\"<>]+")
CREDENTIALS = re.compile(r"\b(bearer|basic)\s+[^\s'\",]+|\bhf_[A-Za-z0-9]{8,}", re.IGNORECASE)


@dataclass(slots=True, frozen=True)
class LogStyle:
    """How a process logs; one that is started by another gets it from there."""

    level: int
    json: bool

    @classmethod
    def current(cls) -> LogStyle:
        """That of this process."""
        formatters = [handler.formatter for handler in logging.getLogger().handlers]
        level = logging.getLogger(OURS[-1]).getEffectiveLevel()
        return cls(level, any(isinstance(f, JsonFormatter) for f in formatters))


class LineFormatter(logging.Formatter):
    """What both forms have in common; `hide` takes known secrets out of a text."""

    def __init__(self, hide: Hide = str) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        self._hide = hide

    def clean(self, text: str) -> str:
        """A text without secrets and without what belongs to a URL but its host."""
        text = self._hide(text)
        text = DATA_URL.sub("data:…", URL.sub(_host_only, text))
        return CREDENTIALS.sub("***", WORD.sub(_without_query, text))

    def value(self, value: Any) -> Any:
        """A field's value, of which texts are cleaned and bounded."""
        if value is None or isinstance(value, (bool, int, float)):
            return value
        text = self.clean(str(value))
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"

    def traceback_of(self, record: logging.LogRecord) -> list[str]:
        """Lines of the traceback that belongs to a record, cleaned."""
        if not record.exc_info or record.exc_info[1] is None:
            return []
        return self.told(record.exc_info[1])

    def told(self, error: BaseException) -> list[str]:
        """Lines of a traceback, cleaned."""
        return self.clean("".join(traceback.format_exception(error))).splitlines()


class HumanFormatter(LineFormatter):
    """`time level message key=value …`; values that could break the line are quoted.

    Lines of a traceback begin with a bar, so that none of them looks like a line of the log.
    """

    def format(self, record: logging.LogRecord) -> str:
        record.message = escaped(self.clean(record.getMessage()))
        record.asctime = self.formatTime(record, self.datefmt)
        fields = fields_of(record).items()
        shown = [f"{name}={_quoted(self.value(v))}" for name, v in fields if v is not None]
        first = " ".join([self.formatMessage(record), *shown])
        return "\n".join([first, *map(_barred, self.traceback_of(record))])


class JsonFormatter(LineFormatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.clean(record.getMessage()),
            **{name: self.value(value) for name, value in fields_of(record).items()},
        }
        if lines := self.traceback_of(record):
            line["traceback"] = "\n".join(lines)
        return _ascii(line)


def configure(style: LogStyle, hide: Hide = str) -> None:
    """Send all loggers of this process, warnings and what nobody caught to stderr in this style.

    Loggers that are not ours say warnings and errors alone, whatever level is asked for.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(allowed)
    handler.setFormatter(JsonFormatter(hide) if style.json else HumanFormatter(hide))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_levels(style.level)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def set_levels(level: int) -> None:
    """Have our loggers begin at a level, and all others not below warnings."""
    logging.getLogger().setLevel(max(level, logging.WARNING))
    for name in OURS:
        logging.getLogger(name).setLevel(level)


def allowed(record: logging.LogRecord) -> bool:
    """Whether a line may be written: also a library that sets its own level is none of ours."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] in OURS


def join(library: str) -> None:
    """Have a library log as everything else does that brings a handler of its own."""
    logger = logging.getLogger(library)
    logger.handlers.clear()
    logger.propagate = True


def escaped(text: str) -> str:
    """A text on one line that shows what it has of control characters, and of marks that turn the
    direction of writing or end a line in some viewers."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _ascii(one)[1:-1] for one in text)


def fault_lines(error: BaseException, hide: Hide = str) -> str:
    """An exception that nobody expected, as a process without a log prints it."""
    return "\n".join(map(_barred, LineFormatter(hide).told(error)))


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a record has beside its message."""
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def _barred(line: str) -> str:
    return f"  | {escaped(line)}"


def _quoted(value: Any) -> str:
    text = str(value)
    plain = text.isprintable() and text and not any(one in text for one in ' "=\\')
    return text if plain else _ascii(text)


def _ascii(value: Any) -> str:
    return json.dumps(value, default=str).replace("\x7f", "\\u007f")


def _host_only(url: re.Match[str]) -> str:
    scheme, host = url[1], url[2]
    address = f"{scheme}://{host}"
    bare = url[0].rstrip("/.,;:)")
    rest = "" if bare == address.rstrip(".,;:)") else "/…"
    return f"{address.rstrip('.,;:)')}{rest}{url[0][len(bare) :]}"


def _without_query(word: re.Match[str]) -> str:
    path, _, query = word[0].partition("?")
    return f"{path}?…" if query and "/" in path else word[0]


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger(__name__).critical("not caught", exc_info=(kind, error, trace))


def _uncaught_in_thread(found: threading.ExceptHookArgs) -> None:
    if found.exc_value is not None:
        _uncaught(found.exc_type, found.exc_value, found.exc_traceback)
