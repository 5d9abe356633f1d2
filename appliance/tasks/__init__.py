"""What the appliance can be started for: a module a task, each with a function `run`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from appliance.config.compose import Composed


def run(composed: Composed) -> int:
    """Run the recipe's task, one of `appliance.config.schema.TASKS`; returns the exit code."""
    task = import_module(f"{__name__}.{composed.config.task}")
    code: int = task.run(composed)
    return code
