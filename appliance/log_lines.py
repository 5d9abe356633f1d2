"""Log lines of the server, as its recipe says."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from appliance.config.schema import LoggingConfig
from engine.device import log_lines
from engine.device.log_lines import Hide, JsonFormatter, LogStyle, fault_lines

JSON = ("logging=json", "logging.format=json")  # as somebody says it who starts a server


def configure(config: LoggingConfig, hide: Hide = str) -> None:
    """Send all loggers to stderr in the form and from the level that `config` says.

    `hide` takes known secrets out of every line.
    """
    level = logging.getLevelNamesMapping()[config.level.upper()]
    log_lines.configure(LogStyle(level, config.format == "json"), hide)


def logs_json() -> bool:
    """Whether every line of this process is to be a JSON object."""
    return LogStyle.current().json


def complain(
    text: str, arguments: Sequence[str], fault: Exception | None = None, hide: Hide = str
) -> None:
    """Write to stderr why the program ends, in the form of its log, perhaps before it has one."""
    if not logs_json() and not set(JSON) & set(arguments):
        lines = [f"appliance: {text}", *([fault_lines(fault, hide)] if fault else [])]
        print("\n".join(lines), file=sys.stderr)
        return
    named = {"name": "appliance", "levelno": logging.ERROR, "levelname": "ERROR", "msg": text}
    if fault is not None:
        named["exc_info"] = (type(fault), fault, fault.__traceback__)
    print(JsonFormatter(hide).format(logging.makeLogRecord(named)), file=sys.stderr)
