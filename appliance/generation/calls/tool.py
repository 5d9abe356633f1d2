"""A tool that a model may call."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Tool:
    """`parameters` is the JSON of the schema of its arguments.

    With `lenient` a call is held to what of the schema can be, because all of it cannot.
    """

    name: str
    parameters: str
    lenient: bool = False


@dataclass(slots=True, frozen=True)
class ToolUse:
    """The tools that may be called, and how that is to be done.

    With `required` an answer is a call, or several unless `parallel` is false.
    """

    tools: tuple[Tool, ...]
    required: bool = False
    parallel: bool = True
