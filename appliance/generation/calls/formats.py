"""The formats by the names that recipes have for them, and which one a model's template shows."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final

from appliance.generation.calls.format import CallFormat
from appliance.generation.calls.hermes import Hermes
from appliance.generation.calls.llama3_json import Llama3Json
from appliance.generation.calls.mistral import ARGS, MistralList, MistralNamed
from appliance.generation.calls.pythonic import Pythonic
from appliance.generation.calls.qwen3_coder import Qwen3Coder

AUTO, NONE = "auto", "none"
FORMATS: Final[dict[str, Callable[[Container[str]], CallFormat]]] = {
    "hermes": lambda tokens: Hermes(),
    "llama3_json": lambda tokens: Llama3Json(),
    "mistral": lambda tokens: MistralNamed() if ARGS in tokens else MistralList(),
    "pythonic": lambda tokens: Pythonic(),
    "qwen3_coder": lambda tokens: Qwen3Coder(),
}
# What only templates of a format say, the most telling ones first.
SIGNS: Final[tuple[tuple[str, str], ...]] = (
    ("<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_start|>", "pythonic"),
    ('"parameters": dictionary of argument name', "llama3_json"),
    ("func_name1(params_name1", "pythonic"),
)


def format_of(template: str) -> str:
    """The name of the format that a chat template tells a model to write calls in, or `none`."""
    return next((name for sign, name in SIGNS if sign in template), NONE)
