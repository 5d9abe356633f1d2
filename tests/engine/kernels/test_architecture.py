"""Architectures as FlashInfer names and matches them."""

from __future__ import annotations

import pytest

from engine.kernels.architecture import ArchitectureUnknown, covers, named, parsed

CAPABILITIES = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)]


def compact(architecture: str) -> str:
    return f"sm{architecture.replace('.', '')}"


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_card_is_named_as_flashinfer_names_it(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = pytest.importorskip("flashinfer.compilation_context").CompilationContext
    cpp = pytest.importorskip("flashinfer.jit.cpp_ext")
    monkeypatch.setattr(cpp, "is_cuda_version_at_least", lambda version: True)
    major, letters = context._normalize_cuda_arch(*capability)
    assert named(capability) == f"{major}.{letters}"


@pytest.mark.parametrize("built", ["8.0", "8.6", "9.0a", "10.0a", "12.0f", "12.1a"])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_code_runs_where_flashinfer_says_that_it_does(
    built: str, capability: tuple[int, int]
) -> None:
    module = pytest.importorskip("flashinfer.jit._cuda_architecture")
    score = module.cuda_binary_target_compatibility_score(
        compact(built), compact(named(capability))
    )
    assert covers([built], capability) == (score is not None)


def test_several_may_be_asked_for() -> None:
    assert parsed("9.0a") == ("9.0a",)
    assert parsed("9.0, 8.9") == ("8.9", "9.0a")
    assert parsed("8.0 8.6 8.0") == ("8.0", "8.6")


@pytest.mark.parametrize("text", ["", " ", "sm90", "9", "9.0x", "90a", "9.0aa", "a", "-9.0"])
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ArchitectureUnknown, match="no architecture, such as"):
        parsed(text)
