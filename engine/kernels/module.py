"""A library of kernels that is compiled on its own, known by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

Argument = str | int | bool
TYPE = "torch."  # what a text that names a type begins with


@dataclass(slots=True, frozen=True)
class KernelModule:
    """What `maker`, as `package.module:function`, describes to FlashInfer's compiler.

    The function gets `arguments`, `torch.bfloat16` and the like as types, and returns a `JitSpec`
    of this name: one of FlashInfer's, or what `flashinfer.jit.gen_jit_spec` makes of sources of
    our own. Nothing is imported before `spec` is called.
    """

    name: str
    maker: str
    arguments: tuple[Argument, ...] = ()

    def spec(self) -> Any:
        """FlashInfer's description of what is to be compiled. Imports FlashInfer and torch."""
        module, _, function = self.maker.partition(":")
        made = getattr(import_module(module), function)(*map(_meant, self.arguments))
        if made.name != self.name:
            raise ValueError(f"{self.maker} makes {made.name}, not {self.name}")
        return made

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> KernelModule:
        return cls(content["name"], content["maker"], tuple(content["arguments"]))


def _meant(argument: Argument) -> Any:
    if isinstance(argument, str) and argument.startswith(TYPE):
        import torch

        return getattr(torch, argument.removeprefix(TYPE))
    return argument
