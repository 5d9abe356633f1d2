"""Long prompts by the kernels for Hopper, everything else by those that every card has."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.reference import TOLERANCE, Recorder, Reference, compare, greedy
from bench.stand_in import torch_flashinfer
from bench.stand_in.platforms import Recording, StandIn, cuda_path, standing_in
from bench.stand_in.torch_flashinfer import BatchPrefillWithPagedKVCacheWrapper
from engine.attention.backend import AttentionShape, KVCache
from engine.attention.flashinfer import hopper_not_compiled, hopper_unsupported
from engine.errors import ModelUnsupported
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


@pytest.mark.parametrize("told", [None, "1"])
def test_where_nothing_is_compiled_at_run_time_only_what_lies_there_counts(
    told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    there = False

    def artifacts(module: str) -> tuple[str, ...]:
        asked.append(module)
        return ("a file",) if there else ()

    def uri(backend: str, *rest: object) -> str:
        return " ".join(map(str, (backend, *rest)))

    jit = SimpleNamespace(
        get_batch_prefill_uri=uri, env=SimpleNamespace(get_aot_artifacts=artifacts)
    )
    library = SimpleNamespace(jit=jit)
    shape = AttentionShape(layers=2, heads=4, kv_heads=2, head_dim=128, scale=0.1)
    cache = KVCache(shape, 1, 16, torch.bfloat16, torch.device("cpu"))
    monkeypatch.delenv("FLASHINFER_DISABLE_JIT", raising=False)
    if told is not None:
        monkeypatch.setenv("FLASHINFER_DISABLE_JIT", told)
    found = hopper_not_compiled(library, shape, cache, torch.bfloat16)
    if told is None:
        assert (found, asked) == (None, [])  # it would be compiled
        return
    assert found is not None
    assert "is not compiled, and FLASHINFER_DISABLE_JIT is set" in found
    there = True
    assert hopper_not_compiled(library, shape, cache, torch.bfloat16) is None
    types = "torch.bfloat16 torch.bfloat16 torch.bfloat16 torch.int32"
    assert set(asked) == {f"fa3 {types} 128 128 0 False False False"}


@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_module_is_the_one_that_flashinfer_loads(
    head_dim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flashinfer = pytest.importorskip("flashinfer", reason="FlashInfer is not installed")
    monkeypatch.setenv("FLASHINFER_DISABLE_JIT", "1")
    monkeypatch.setattr(flashinfer.jit.env, "FLASHINFER_AOT_DIR", tmp_path)
    shape = AttentionShape(layers=2, heads=4, kv_heads=2, head_dim=head_dim, scale=0.1)
    cache = KVCache(shape, 1, 16, torch.bfloat16, torch.device("cpu"))
    assert hopper_not_compiled(flashinfer, shape, cache, torch.bfloat16) is not None
    kinds = "dtype_q_bf16_dtype_kv_bf16_dtype_o_bf16_dtype_idx_i32"
    name = (
        f"batch_prefill_with_kv_cache_{kinds}_head_dim_qk_{head_dim}_head_dim_vo_{head_dim}_"
        "posenc_0_use_swa_False_use_logits_cap_False_f16qk_False_sm90"
    )
    (tmp_path / name).mkdir()
    (tmp_path / name / f"{name}.so").touch()
    assert hopper_not_compiled(flashinfer, shape, cache, torch.bfloat16) is None


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
    monkeypatch.setattr(platforms, "hopper_not_compiled", lambda *_: not_compiled)
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
