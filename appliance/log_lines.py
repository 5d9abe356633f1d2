"""Log lines of the server, as its recipe says."""

from __future__ import annotations

import logging

from appliance.config.schema import LoggingConfig
from engine.device import log_lines
from engine.device.log_lines import Hide, LogStyle


def configure(config: LoggingConfig, hide: Hide = str) -> None:
    """Send all loggers to stderr in the form and from the level that `config` says.

    `hide` takes known secrets out of every line.
    """
    level = logging.getLevelNamesMapping()[config.level.upper()]
    log_lines.configure(LogStyle(level, config.format == "json"), hide)
