"""Processes of the engine log as the server does."""

from __future__ import annotations

import json
import logging
import multiprocessing
from importlib import import_module

import pytest

from engine.device.log_lines import LogStyle
from engine.device.process_setup import set_up


def speak(style: LogStyle) -> None:
    set_up(style)
    logging.getLogger("engine.core").warning("one\ntwo https://h/?s3cret")
    import_module("transformers").logging.get_logger("transformers.x").warning("three")
    logging.getLogger("engine.core").debug("not shown")


@pytest.mark.parametrize("form", ["json", "human"])
def test_a_process_of_the_engine_logs_in_the_style_it_is_told(
    form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    style = LogStyle(logging.INFO, form == "json")
    process = multiprocessing.get_context("spawn").Process(target=speak, args=(style,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    first, second = capfd.readouterr().err.splitlines()
    if form == "json":
        assert json.loads(first)["message"] == "one\ntwo https://h/…"
        assert json.loads(second)["logger"] == "transformers.x"
    else:
        assert first.endswith(r"WARNING one\ntwo https://h/…")
        assert second.endswith("WARNING three")
