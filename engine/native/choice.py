"""Which variant of our library's kernels runs: `engine.native`. Light: the server asks as well."""

from __future__ import annotations

from engine.errors import EngineError
from engine.native.loading import DTYPES, LibraryUnusable, variants
from engine.options import EngineOptions


class NativeUnusable(EngineError):
    """A variant that was asked for is not there; one line with those that are."""

    correctable = True


def chosen(native: str) -> str | None:
    """The variant that `engine.native` stands for; None: torch's operators.

    Raises NativeUnusable where there is no library, or it or this processor lacks the variant.
    """
    if native == "torch":
        return None
    try:
        found = variants()
    except LibraryUnusable as error:
        raise NativeUnusable(f"engine.native={native}: {error}") from error
    if native == "auto" and found:
        return found[0]
    if native in found:
        return native
    there = ", ".join(found) or "none"
    raise NativeUnusable(f"engine.native={native}: this processor has {there}, or set it to torch")


def computes(native: str, *, fuse: bool, ranks: int) -> bool:
    """Whether layers that the library has kernels for are its own, by the settings."""
    try:
        return fuse and ranks == 1 and chosen(native) is not None
    except NativeUnusable:
        return False


def left_to_torch(options: EngineOptions) -> str | None:
    """Why layers are torch's whatever they are, by the settings; None if they need not be."""
    if options.tensor_parallel > 1:
        return "several processes share each layer"
    if not options.fuse:
        return "they are not fused"
    return None if options.dtype in DTYPES else f"there are no kernels of {options.dtype}"


def in_words(options: EngineOptions, *, across: bool = False) -> str:
    """Whose kernels compute the layers on a CPU, as far as the settings tell.

    Layers of a pattern that is not known are torch's in any case, as are those of a decoder that
    attends `across`; the engine's log says so.
    """
    try:
        variant = chosen(options.native)
    except NativeUnusable as error:
        return f"torch's operators ({error})"
    by_torch = across or variant is None or left_to_torch(options) is not None
    return "torch's operators" if by_torch else f"our kernels for {variant}"
