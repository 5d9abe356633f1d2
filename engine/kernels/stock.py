"""The compiled kernels that a start finds, and which of those it needs are not among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.device.toolchain import packaged
from engine.errors import EngineError
from engine.kernels.architecture import capability_of, covers, named
from engine.kernels.compiler import Target
from engine.kernels.folder import KernelFolder, KernelsUnfit, Manifest
from engine.kernels.module import KernelModule
from engine.kernels.versions import Versions, installed
from engine.options import KernelOptions


class KernelsMissing(EngineError):
    """Kernels are not compiled, and none may be."""

    correctable = True


@dataclass(slots=True, frozen=True)
class Stock:
    """What lies in `target`, which is of this machine's kind, and in FlashInfer's own packages."""

    options: KernelOptions
    target: Target
    compiled: frozenset[str]
    packaged: frozenset[str]

    def missing(self, modules: Sequence[KernelModule]) -> list[KernelModule]:
        return [one for one in modules if one.name not in self.compiled | self.packaged]

    def refusal(self, missing: Sequence[KernelModule], why: str) -> KernelsMissing:
        """What to do about kernels that cannot be compiled now, in one line."""
        first, others = missing[0].name, len(missing) - 1
        rest = f" and {others} more are" if others else " is"
        return KernelsMissing(
            f"the kernel {first}{rest} not in {self.target.folder}, and {why}: "
            f"`{self.options.command}` compiles what is missing"
        )


def look(options: KernelOptions, capability: tuple[int, int] | None) -> Stock:
    """The stock for a card of this capability, or for `options.architectures` where there is none.

    Raises KernelsUnfit, in one line, for a folder of another kind than is needed.
    """
    wanted = options.architectures or _of_card(options, capability)
    there = installed()
    if capability is not None and not covers(wanted, capability):
        raise KernelsUnfit(
            f"kernels.arch={','.join(wanted)} does not run on this card, which is "
            f"{named(capability)}: leave kernels.arch out"
        )
    folder = folder_for(options, wanted, there)
    manifest = folder.manifest()
    if manifest is None:
        return Stock(options, Target(folder.path, wanted), frozenset(), packaged())
    check_fits(options, manifest, wanted, there)
    target = Target(folder.path, manifest.architectures)
    return Stock(options, target, folder.intact(), packaged())


def folder_for(
    options: KernelOptions, architectures: Sequence[str], there: Versions
) -> KernelFolder:
    """The named folder, or the one that is kept for this kind of machine."""
    if options.named:
        return KernelFolder(Path(options.folder))
    cuda = there.cuda.partition(".")[0] or "none"
    torch = ".".join(there.torch.split(".")[:2])
    kind = f"sm{'_'.join(architectures)}-flashinfer{there.flashinfer}-torch{torch}-cuda{cuda}"
    return KernelFolder(Path(options.folder) / kind)


def check_fits(
    options: KernelOptions, manifest: Manifest, wanted: tuple[str, ...], there: Versions
) -> None:
    """Raise KernelsUnfit unless the kernels run on such cards with such packages."""
    if manifest.runs(wanted, there):
        return
    machine = Manifest(there, wanted)
    raise KernelsUnfit(
        f"{options.folder} has kernels for {manifest}, and this machine is {machine}: "
        f"`{options.command}` makes the right ones"
    )


def _of_card(options: KernelOptions, capability: tuple[int, int] | None) -> tuple[str, ...]:
    if capability is not None:
        return (named(capability),)
    manifest = KernelFolder(Path(options.folder)).manifest() if options.named else None
    return () if manifest is None else manifest.architectures


def capabilities(architectures: Sequence[str]) -> list[tuple[int, int]]:
    return [capability_of(one) for one in architectures]
