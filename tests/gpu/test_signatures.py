"""Every call into FlashInfer binds to the installed package's own signature.

The calls are not listed here: they are recorded from an engine that runs the CUDA path on the torch
implementation, so a call that is added is checked too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.reference import Recorder, greedy, picture, prompt_with_images
from bench.stand_in import torch_flashinfer
from bench.stand_in.platforms import Recording, cuda_path
from engine.request import Request
from tests.engine.running.test_oracle import words

flashinfer = pytest.importorskip("flashinfer", reason="FlashInfer is not installed")

Folder = Callable[[str], Path]
Call = tuple[str, tuple[Any, ...], dict[str, Any]]  # dotted name, arguments


def watched(member: Any, name: str, calls: list[Call]) -> Any:
    """The member of the torch implementation, each of its calls noted under `name`."""
    if inspect.isclass(member):

        def noting(method: str) -> Callable[..., Any]:
            original = getattr(member, method)

            def call(self: Any, *arguments: Any, **options: Any) -> Any:
                calls.append((f"{name}.{method}", (self, *arguments), options))
                return original(self, *arguments, **options)

            return call

        methods = ("__init__", "plan", "run", "reset_workspace_buffer")
        return type(name, (member,), {method: noting(method) for method in methods})

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append((name, arguments, options))
        return member(*arguments, **options)

    return call


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    from tests import checkpoints

    noted: list[Call] = []
    sampling = torch_flashinfer.sampling
    library = SimpleNamespace(
        **{
            name: watched(getattr(torch_flashinfer, name), name, noted)
            for name in torch_flashinfer.__all__
            if name != "sampling"
        },
        sampling=SimpleNamespace(
            **{
                name: watched(member, f"sampling.{name}", noted)
                for name, member in inspect.getmembers(sampling, inspect.isfunction)
            }
        ),
    )
    root = tmp_path_factory.mktemp("signatures")
    for family in ("qwen2_vl", "qwen3", "gemma3"):
        folder = checkpoints.WRITERS[family](root / family)
        platform = Recording(library)
        told: dict[str, object] = {"graphs": True, "vision_attention": "flashinfer"}
        if family != "qwen3":
            told["prefill_graphs"] = 64
        recorder = Recorder(cuda_path(folder, platform, **told))
        tokens, media = words(9, 1), []
        if family != "qwen3":
            tokens, media = prompt_with_images(folder, [words(5, 1), picture(60, 90, 1)])
        drawn = {"temperature": 1.0, "top_k": 5, "top_p": 0.5}
        recorder.run(
            Request("greedy", tokens, greedy(3), media),
            Request("drawn", tokens, greedy(3, **drawn), media),
        )
    return noted


def signature(name: str) -> inspect.Signature:
    """The installed package's. The decode wrapper's plan hands its options on to another."""
    if name == "BatchDecodeWithPagedKVCacheWrapper.plan":
        name = "BatchDecodeWithPagedKVCacheWrapper._plan_impl"
    member: Any = flashinfer
    for part in name.split("."):
        member = getattr(member, part)
    return inspect.signature(member)


def test_every_call_binds(calls: list[Call]) -> None:
    for name, arguments, options in calls:
        signature(name).bind(*arguments, **options)


def test_nothing_that_the_path_uses_went_unseen(calls: list[Call]) -> None:
    seen = {name for name, _, _ in calls}
    assert seen >= {
        "BatchDecodeWithPagedKVCacheWrapper.__init__",
        "BatchDecodeWithPagedKVCacheWrapper.plan",
        "BatchDecodeWithPagedKVCacheWrapper.run",
        "BatchDecodeWithPagedKVCacheWrapper.reset_workspace_buffer",
        "BatchPrefillWithCausalBidirectionalRangesWrapper.__init__",
        "BatchPrefillWithCausalBidirectionalRangesWrapper.plan",
        "BatchPrefillWithCausalBidirectionalRangesWrapper.run",
        "BatchPrefillWithPagedKVCacheWrapper.__init__",
        "BatchPrefillWithPagedKVCacheWrapper.plan",
        "BatchPrefillWithPagedKVCacheWrapper.run",
        "append_paged_kv_cache",
        "apply_rope_with_cos_sin_cache_inplace",
        "fused_add_rmsnorm",
        "gelu_tanh_and_mul",
        "gemma_fused_add_rmsnorm",
        "gemma_rmsnorm",
        "rmsnorm",
        "silu_and_mul",
        "single_prefill_with_kv_cache",
        "sampling.softmax",
        "sampling.sampling_from_probs",
        "sampling.top_k_renorm_probs",
        "sampling.top_p_renorm_probs",
    }


def test_a_call_that_does_not_fit_is_noticed(calls: list[Call]) -> None:
    """Control: for every function, an unknown option and a missing argument must not bind."""
    for name, arguments, options in calls:
        with pytest.raises(TypeError):
            signature(name).bind(*arguments, **options, no_such_option=1)
        required = [
            parameter
            for parameter in signature(name).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        with pytest.raises(TypeError):
            signature(name).bind(*arguments[: len(required) - 1])


def test_the_torch_implementation_takes_no_more_than_the_package() -> None:
    """Names and order of what it declares are the package's, so that it cannot mislead."""
    for name in torch_flashinfer.__all__:
        member = getattr(torch_flashinfer, name)
        names = [name]
        if inspect.isclass(member):
            names = [f"{name}.{method}" for method in ("__init__", "plan", "run")]
        elif name == "sampling":
            names = [f"sampling.{n}" for n, _ in inspect.getmembers(member, inspect.isfunction)]
        for dotted in names:
            ours: Any = torch_flashinfer
            for part in dotted.split("."):
                ours = getattr(ours, part)
            theirs = signature(dotted).parameters
            for parameter in inspect.signature(ours).parameters.values():
                assert parameter.name in theirs, f"{dotted} has no {parameter.name}"


def test_decode_plans_by_keyword_after_the_page_size(calls: list[Call]) -> None:
    """Further positional arguments are deprecated there."""
    name = "BatchDecodeWithPagedKVCacheWrapper.plan"
    public = inspect.signature(flashinfer.BatchDecodeWithPagedKVCacheWrapper.plan)
    for called, arguments, options in calls:
        if called == name:
            bound = public.bind(*arguments, **options)
            assert "deprecated_positional_args" not in bound.arguments
