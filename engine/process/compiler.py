"""torch's compiler, kept out of a process until somebody compiles.

transformers and torch itself import it for marks on their functions, which say what it is to leave
alone. It takes a quarter of all imports' time, and brings 50 MB.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
MARKS = ("allow_in_graph", "assume_constant_result", "disable")  # of functions
LIGHT = f"{COMPILER}._trace_wrapped_higher_order_op"  # a file of it that does without the others


def leave_out() -> None:
    """From here on its marks do nothing. Whoever asks for anything else of it has it."""
    if COMPILER not in sys.modules:
        sys.modules[COMPILER] = _Unmarked()
        sys.meta_path.insert(0, _Whole())


class _Unmarked(ModuleType):
    """In its place."""

    def __init__(self) -> None:
        super().__init__(COMPILER)
        torch = find_spec("torch")
        places = torch.submodule_search_locations if torch is not None else None
        self.__path__ = [f"{place}/_dynamo" for place in places or ()]
        self.__dict__.update(dict.fromkeys(MARKS, _unmarked))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_compiler(), name)


class _Whole(MetaPathFinder):
    """Has whoever imports a file of the compiler get it with the compiler around it."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname.rpartition(".")[0] != COMPILER or fullname == LIGHT:
            return None
        if isinstance(sys.modules.get(COMPILER), _Unmarked):
            _compiler()
            if fullname in sys.modules:
                return ModuleSpec(fullname, _Imported())
        return None


class _Imported(Loader):
    """Of a module that came while it was looked for."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        return None


def _unmarked(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    return function if function is not None else _unmarked


def _compiler() -> ModuleType:
    if isinstance(sys.modules.get(COMPILER), _Unmarked):
        del sys.modules[COMPILER]
    return import_module(COMPILER)
