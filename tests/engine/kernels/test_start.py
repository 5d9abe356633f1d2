"""A start has every kernel before it is ready, or says in one line which is missing and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.reference import engine_options
from engine.device import toolchain
from engine.kernels import start, stock
from engine.kernels.folder import KernelFolder, KernelsUnfit
from engine.kernels.needed import needed
from engine.kernels.start import as_missing, compile_no_more, hand_over, provide
from engine.kernels.stock import KernelsMissing, look
from engine.kernels.versions import Versions, installed
from engine.models.registry import family_for
from engine.options import EngineOptions, KernelOptions
from tests.conftest import CHECKOUT
from tests.engine.kernels.toolkit import Toolkit

DEMO = CHECKOUT / "recipes" / "demo"
HOPPER = (9, 0)
COMMAND = "appliance recipe=demo engine=cuda task=kernels"

flashinfer = pytest.importorskip("flashinfer", reason="FlashInfer is not installed")


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toolkit:
    made = Toolkit(tmp_path)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


def options(tmp_path: Path, dtype: str = "bfloat16", **changes: Any) -> EngineOptions:
    settings = {"folder": str(tmp_path / "kernels"), "named": True, "command": COMMAND} | changes
    kernels = KernelOptions(**settings)
    return engine_options(DEMO, device="cuda", dtype=dtype, kernels=kernels)


def names(asked: EngineOptions) -> set[str]:
    return {module.name for module in needed(family_for(DEMO), asked, [HOPPER])}


class Progress(list[str]):
    """Phases, as they change."""

    def __call__(self, phase: str, fraction: float) -> None:
        assert 0 <= fraction <= 1
        if not self or self[-1] != phase:
            self.append(phase)


def test_what_is_missing_is_compiled_once_with_a_phase_for_each(
    toolkit: Toolkit, tmp_path: Path
) -> None:
    asked, told = options(tmp_path), Progress()
    found = provide(asked, HOPPER, told)
    assert found.compiled == names(asked)
    assert found.target.architectures == ("9.0a",)
    count = len(found.compiled)
    assert told[:2] == ["looking for kernels", f"compiling kernels 0 of {count}"]
    assert told[-1] == f"compiling kernels {count} of {count}"
    before = len(toolkit.compiled)
    again = Progress()
    assert provide(asked, HOPPER, again).compiled == found.compiled
    assert again == ["looking for kernels"]
    assert len(toolkit.compiled) == before


def test_what_auto_takes_only_where_it_is_there_is_not_waited_for(
    toolkit: Toolkit, tmp_path: Path
) -> None:
    asked = replace(options(tmp_path), prefill_attention="auto", decode_products="auto")
    least = names(replace(asked, prefill_attention="fa2", decode_products="library"))
    assert len(names(asked) - least) == 2
    assert provide(asked, HOPPER, Progress()).compiled == least
    forced = replace(asked, prefill_attention="fa3", decode_products="own")
    assert provide(forced, HOPPER, Progress()).compiled == names(asked)


def test_without_a_folder_of_its_own_each_kind_of_machine_has_one(
    toolkit: Toolkit, tmp_path: Path
) -> None:
    asked = options(tmp_path, named=False)
    first, second = provide(asked, HOPPER, Progress()), provide(asked, (8, 6), Progress())
    assert first.target.folder != second.target.folder
    assert first.target.folder.parent == second.target.folder.parent == tmp_path / "kernels"
    assert first.target.folder.name.startswith("sm9.0a-flashinfer")


def test_engine_jit_false_names_the_kernel_and_the_command(
    toolkit: Toolkit, tmp_path: Path
) -> None:
    asked = options(tmp_path, jit=False)
    with pytest.raises(KernelsMissing) as told:
        provide(asked, HOPPER, Progress())
    assert told.value.correctable
    assert str(told.value) == (
        f"the kernel page and 6 more are not in {tmp_path}/kernels, and engine.jit=false: "
        f"`{COMMAND}` compiles what is missing"
    )
    assert not toolkit.compiled
    provide(options(tmp_path), HOPPER, Progress())
    assert provide(asked, HOPPER, Progress()).compiled == names(asked)


def test_one_kernel_too_few_is_enough_to_refuse(toolkit: Toolkit, tmp_path: Path) -> None:
    provide(options(tmp_path), HOPPER, Progress())
    half = options(tmp_path, dtype="float16", jit=False)
    with pytest.raises(KernelsMissing, match=r"the kernel batch_prefill_.*_f16_.* and 1 more are"):
        provide(half, HOPPER, Progress())


def test_flashinfers_own_switch_refuses_too(
    toolkit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHINFER_DISABLE_JIT", "1")
    with pytest.raises(KernelsMissing, match="and FLASHINFER_DISABLE_JIT is set: "):
        provide(options(tmp_path), HOPPER, Progress())


def test_where_nothing_compiles_it_says_what_is_missing(toolkit: Toolkit, tmp_path: Path) -> None:
    (toolkit.home / "include" / "curand_kernel.h").unlink()
    with pytest.raises(KernelsMissing, match=r"finds no curand_kernel\.h.*task=kernels"):
        provide(options(tmp_path), HOPPER, Progress())


def test_kernels_of_flashinfers_packages_are_not_compiled_again(
    toolkit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = options(tmp_path)
    monkeypatch.setattr(stock, "packaged", lambda: frozenset(names(asked) - {"page"}))
    assert provide(asked, HOPPER, Progress()).compiled == {"page"}


@pytest.mark.parametrize(
    ("versions", "architectures", "named"),
    [
        ({"flashinfer": "0.7.1"}, ("9.0a",), "FlashInfer 0.7.1"),
        ({"torch": "2.1.0"}, ("9.0a",), "torch 2.1.0"),
        ({"cuda": "12.9"}, ("9.0a",), "CUDA 12.9"),
        ({}, ("8.0", "8.9"), "sm 8.0 8.9"),
    ],
)
def test_a_folder_of_another_machine_is_refused_with_both_named(
    toolkit: Toolkit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    versions: dict[str, str],
    architectures: tuple[str, ...],
    named: str,
) -> None:
    here = Versions(installed().flashinfer, installed().torch, "13.0")
    monkeypatch.setattr(stock, "installed", lambda: here)
    other = replace(here, **versions)
    folder = KernelFolder(tmp_path / "kernels")
    folder.path.mkdir()
    folder.keep({}, other, architectures)
    with pytest.raises(KernelsUnfit) as told:
        provide(options(tmp_path), HOPPER, Progress())
    first, second = str(told.value).split(", and this machine is ")
    assert named in first
    assert f"sm 9.0a ({here})" in second
    assert f"`{COMMAND}` makes the right ones" in second
    assert "\n" not in str(told.value)


def test_an_architecture_that_is_not_the_cards_is_refused(tmp_path: Path) -> None:
    asked = options(tmp_path, architectures=("8.0",))
    with pytest.raises(KernelsUnfit, match=r"kernels\.arch=8\.0 does not run on this card.*9\.0a"):
        provide(asked, HOPPER, Progress())


def test_flashinfer_takes_what_was_compiled(
    toolkit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flashinfer.jit import core, env

    monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setattr(env, "FLASHINFER_AOT_PROVIDERS", env.FLASHINFER_AOT_PROVIDERS)
    monkeypatch.setattr(core, "check_cuda_arch", lambda: None)
    asked = options(tmp_path)
    page = next(one for one in needed(family_for(DEMO), asked, [HOPPER]) if one.name == "page")
    assert not page.spec().is_aot
    found = provide(asked, HOPPER, Progress())
    hand_over(found)
    hand_over(found)  # once is enough, and twice is not more
    assert len([one for one in env.FLASHINFER_AOT_PROVIDERS if one.provider_id == start.OWNER]) == 1
    assert page.spec().get_library_paths() == (tmp_path / "kernels" / "page" / "page.so",)
    monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", "8.0")
    assert not page.spec().is_aot  # for that card it is no code


def test_from_then_on_nothing_is_compiled(
    toolkit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flashinfer.jit import core, env

    monkeypatch.setattr(core, "check_cuda_arch", lambda: None)
    monkeypatch.setattr(env, "FLASHINFER_JIT_DIR", tmp_path / "jit")
    compile_no_more()  # monkeypatch has the variable, and puts it back
    with pytest.raises(RuntimeError) as raised:
        needed(family_for(DEMO), options(tmp_path), [HOPPER])[0].spec().build_and_load()
    told = as_missing(raised.value, options(tmp_path))
    assert told is not None
    assert told.correctable
    assert "the kernel page, which is not on the list" in str(told)
    assert as_missing(RuntimeError("another"), options(tmp_path)) is None
    assert not toolkit.compiled


def test_a_compiler_that_is_no_more_needed_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image has kernels and nothing that compiles."""
    toolkit = Toolkit(tmp_path)
    for name, value in toolkit.environment.items():
        monkeypatch.setenv(name, value)
    asked = options(tmp_path)
    provide(asked, HOPPER, Progress())
    (toolkit.home / "bin" / "nvcc").unlink()
    assert toolchain.missing_tools() is not None
    assert provide(asked, HOPPER, Progress()).compiled == names(asked)


def test_a_stock_without_a_card_is_what_the_folder_says(toolkit: Toolkit, tmp_path: Path) -> None:
    asked = options(tmp_path)
    assert asked.kernels is not None
    assert look(asked.kernels, None).compiled == frozenset()
    provide(asked, HOPPER, Progress())
    assert look(asked.kernels, None).target.architectures == ("9.0a",)
