"""Long prompts by the kernels for Hopper, everything else by those that every card has."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.reference import TOLERANCE, Recorder, Reference, compare, greedy
from bench.stand_in import torch_flashinfer
from bench.stand_in.platforms import Recording, StandIn, cuda_path, standing_in
from bench.stand_in.torch_flashinfer import BatchPrefillWithPagedKVCacheWrapper
from engine.attention.backend import AttentionShape, KVCache
from engine.attention.flashinfer import hopper_unsupported
from engine.errors import ModelUnsupported
from engine.kernels.attention import PagedAttention
from engine.kernels.start import absent
from engine.request import Request
from engine.running import platform as platforms
from tests.engine.running.test_oracle import words

Folder = Callable[[str], Path]
Model = Callable[[str], Reference]


def noting(planned: list[tuple[str, int, int]]) -> Any:
    """The library, its prefills noting backend, window and new tokens of each plan."""

    class Noting(BatchPrefillWithPagedKVCacheWrapper):
        def __init__(self, *arguments: Any, backend: str) -> None:
            super().__init__(*arguments, backend=backend)
            self.backend = backend

        def plan(self, qo_indptr: torch.Tensor, *rest: Any, **options: Any) -> None:
            planned.append((self.backend, options["window_left"], int(qo_indptr[-1])))
            super().plan(qo_indptr, *rest, **options)

    return standing_in(BatchPrefillWithPagedKVCacheWrapper=Noting)


def run(
    folder: Path, prompt: int, prefill: str
) -> tuple[Recorder, Request, list[tuple[str, int, int]]]:
    planned: list[tuple[str, int, int]] = []
    told = {"max_tokens_per_step": 8192, "max_len": 8192, "pages": 520, "prefix_cache": False}
    engine = cuda_path(folder, StandIn(noting(planned)), prefill_attention=prefill, **told)
    planned.clear()  # what the start computes
    recorder, request = Recorder(engine), Request("r", words(prompt, 1), greedy(2))
    recorder.run(request)
    return recorder, request, planned


def test_a_long_prompt_takes_the_kernels_for_hopper_and_is_right(
    checkpoint: Folder, reference: Model
) -> None:
    # the checkpoint's few heads make a step of all processors a long one
    recorder, request, planned = run(checkpoint("llama"), 4100, "fa3")
    assert planned == [("fa3", -1, 4100)]
    assert compare(recorder, reference("llama"), [request]) < TOLERANCE


def test_few_new_tokens_stay_with_what_splits_their_keys(checkpoint: Folder) -> None:
    assert run(checkpoint("llama"), 300, "fa3")[2] == [("fa2", -1, 300)]


@pytest.mark.parametrize("prefill", ["auto", "fa2"])
def test_a_device_of_another_kind_has_fa2_alone(checkpoint: Folder, prefill: str) -> None:
    assert run(checkpoint("llama"), 4100, prefill)[2] == [("fa2", -1, 4100)]


def test_layers_with_a_window_stay_with_fa2(checkpoint: Folder, reference: Model) -> None:
    recorder, request, planned = run(checkpoint("gemma3_text"), 4100, "fa3")
    assert {(backend, window >= 0) for backend, window, _ in planned} == {
        ("fa3", False),
        ("fa2", True),
    }
    assert compare(recorder, reference("gemma3_text"), [request]) < TOLERANCE


def test_the_start_computes_by_both(checkpoint: Folder) -> None:
    planned: list[tuple[str, int, int]] = []
    cuda_path(
        checkpoint("llama"),
        Recording(noting(planned)),
        prefill_attention="fa3",
        max_tokens_per_step=8192,
        max_len=8192,
        max_sequences=64,
        pages=520,
    )
    assert {backend for backend, _, _ in planned} == {"fa2", "fa3"}


@pytest.mark.parametrize(
    ("capability", "changes", "dtype", "reason"),
    [
        ((9, 0), {}, torch.bfloat16, None),
        ((9, 0), {"windows": (None, 8)}, torch.float16, None),
        ((8, 9), {}, torch.bfloat16, "capability 9.0"),
        ((10, 0), {}, torch.bfloat16, "capability 9.0"),
        ((9, 0), {}, torch.float8_e4m3fn, "eight bits"),
        ((9, 0), {"soft_cap": 20.0}, torch.bfloat16, "capped scores"),
        ((9, 0), {"windows": (8, 8)}, torch.bfloat16, "every layer has one"),
    ],
)
def test_where_there_are_kernels_for_hopper(
    capability: tuple[int, int], changes: dict[str, Any], dtype: torch.dtype, reason: str | None
) -> None:
    shape = AttentionShape(layers=2, heads=4, kv_heads=2, head_dim=64, scale=0.1, **changes)
    cache = KVCache(shape, 1, 16, dtype, torch.device("cpu"))
    found = hopper_unsupported(capability, shape, cache)
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_what_is_not_there_is_done_without() -> None:
    module = PagedAttention("bfloat16", "bfloat16").hopper_prefill(128)
    assert absent(module, frozenset({module.name})) is None
    assert absent(module, frozenset()) == f"{module.name} is not compiled"


def test_where_nobody_looked_flashinfer_says_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flashinfer = pytest.importorskip("flashinfer", reason="FlashInfer is not installed")
    monkeypatch.setattr(flashinfer.jit.env, "FLASHINFER_AOT_DIR", tmp_path)
    module = PagedAttention("bfloat16", "bfloat16").hopper_prefill(64)
    monkeypatch.delenv("FLASHINFER_DISABLE_JIT", raising=False)
    assert absent(module, None) is None  # it would be compiled
    monkeypatch.setenv("FLASHINFER_DISABLE_JIT", "1")
    assert "FLASHINFER_DISABLE_JIT is set" in (absent(module, None) or "")
    (tmp_path / module.name).mkdir()
    (tmp_path / module.name / f"{module.name}.so").touch()
    assert absent(module, None) is None


@pytest.mark.parametrize(
    ("asked", "unsupported", "not_compiled", "expected"),
    [
        ("auto", None, None, "fa3"),
        ("auto", "another card", None, "fa2"),
        ("auto", None, "not there", "fa2"),
        ("fa2", None, None, "fa2"),
        ("fa3", None, "not there", "fa3"),  # which FlashInfer refuses, naming the module
        ("fa3", "another card", None, None),
    ],
)
def test_what_auto_takes(
    asked: str,
    unsupported: str | None,
    not_compiled: str | None,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    taken: list[bool] = []

    def made(*_: object, hopper: bool) -> str:
        taken.append(hopper)
        return "attention"

    monkeypatch.setattr(platforms, "FlashInferAttention", made)
    monkeypatch.setattr(platforms, "hopper_unsupported", lambda *_: unsupported)
    monkeypatch.setattr(platforms, "absent", lambda *_: not_compiled)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(platforms.Cuda, "__init__", lambda *_: None)
    platform = platforms.CudaPlatform(library=torch_flashinfer)
    platform.device = torch.device("cuda", 0)
    platform._limited = True
    shape = AttentionShape(layers=2, heads=4, kv_heads=2, head_dim=64, scale=0.1)
    cache = KVCache(shape, 1, 16, torch.bfloat16, torch.device("cpu"))
    caplog.set_level(logging.INFO, logger="engine")
    if expected is None:
        with pytest.raises(ModelUnsupported, match=r"engine\.prefill_attention=auto"):
            platform.attention(shape, cache, torch.bfloat16, asked)
        return
    platform.attention(shape, cache, torch.bfloat16, asked)
    assert taken == [expected == "fa3"]
    said = [record.getMessage() for record in caplog.records]
    assert said == (
        ["prompts are attended to by fa2: not there"] if asked == "auto" and not_compiled else []
    )
