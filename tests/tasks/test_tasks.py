"""Every task that a recipe may name is there."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from appliance import tasks
from appliance.config.schema import TASKS


def test_every_task_is_a_module_that_runs_and_every_module_a_task() -> None:
    assert all(callable(import_module(f"appliance.tasks.{name}").run) for name in TASKS)
    files = {file.stem for file in Path(tasks.__file__).parent.glob("*.py")}
    assert files - {"__init__"} == set(TASKS)
