"""Which steps are decoded by our own products, and what is said where there are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.reference import TOLERANCE, Recorder, Reference, compare, greedy
from bench.stand_in.platforms import Recording, cuda_path
from engine.errors import ModelUnsupported
from engine.layers import decode_products
from engine.layers.decode_products import SPLITS, deal, module_name, unsupported
from engine.request import Request
from tests.engine.running.test_oracle import words

Folder = Callable[[str], Path]
Model = Callable[[str], Reference]


def decoded(
    folder: Path, count: int, platform: Recording, **changes: object
) -> tuple[Recorder, list[Request]]:
    engine = cuda_path(folder, platform, **({"decode_products": "own"} | changes))
    recorder = Recorder(engine)
    platform.own.calls.clear()  # what the start computes
    requests = [Request(f"r{i}", words(9, i), greedy(4)) for i in range(count)]
    recorder.run(*requests)
    return recorder, requests


@pytest.mark.parametrize(("family", "first"), [("qwen2", "heads"), ("qwen3", "store")])
@pytest.mark.parametrize("graphs", [False, True])
def test_each_layer_of_a_decoding_step_is_of_our_products(
    family: str, first: str, graphs: bool, checkpoint: Folder, reference: Model
) -> None:
    platform = Recording()
    recorder, requests = decoded(checkpoint(family), 2, platform, graphs=graphs)
    layers = recorder.engine._runner.loaded.shape.layers
    steps = 3  # the first of four tokens is the prompt's
    assert platform.own.calls == {
        first: layers * steps,
        "add": 2 * layers * steps,
        "gate": layers * steps,
    }
    assert compare(recorder, reference(family), requests) < TOLERANCE


def test_more_tokens_than_they_are_for_go_to_the_library(
    checkpoint: Folder, reference: Model
) -> None:
    platform = Recording()
    platform.own.most_tokens = 1
    recorder, requests = decoded(checkpoint("llama"), 2, platform)
    assert platform.own.calls == {}
    assert compare(recorder, reference("llama"), requests) < TOLERANCE
    assert decoded(checkpoint("llama"), 1, platform)
    assert platform.own.calls


def test_by_default_the_library_decodes(checkpoint: Folder) -> None:
    platform = Recording()
    decoded(checkpoint("llama"), 1, platform, decode_products="library")
    assert platform.own.calls == {}


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("gemma3_text", {}, "layers that norm what they add"),
        ("llama", {"fuse": False}, "layers that are not fused"),
    ],
)
def test_layers_without_products_of_ours_are_refused(
    family: str, changes: dict[str, object], said: str, checkpoint: Folder
) -> None:
    told = {"decode_products": "own"} | changes
    with pytest.raises(ModelUnsupported, match=f"{said}.*engine.decode_products=library"):
        cuda_path(checkpoint(family), Recording(), **told)
    told["decode_products"] = "auto"
    cuda_path(checkpoint(family), Recording(), **told)


def test_why_there_are_none() -> None:
    hopper, half, depths = (9, 0), torch.bfloat16, (1536, 1536, 8960)
    assert unsupported(hopper, half, 128, depths) is None
    assert "9.0" in (unsupported((8, 0), half, 128, depths) or "")
    assert "float16" in (unsupported(hopper, torch.float16, 128, depths) or "")
    assert "64" in (unsupported(hopper, half, 128, (1536, 1536, 8992)) or "")
    assert "16" in (unsupported(hopper, half, 72, depths) or "")


@pytest.mark.parametrize("tokens", [1, 8, 16, 32])
@pytest.mark.parametrize(
    ("depth", "out"), [(1536, 2048), (8960, 1536), (18944, 3584), (3584, 37888)]
)
def test_the_work_is_dealt_to_whole_clusters_on_all_processors(
    tokens: int, depth: int, out: int
) -> None:
    split, blocks = deal(tokens, depth, out // 16, 132)
    assert split in SPLITS
    assert split <= blocks <= 132
    assert 2 * tokens * depth // split <= 160 << 10  # beside the sums of sixteen tiles


def test_a_compiled_module_is_of_these_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = module_name()
    for source in decode_products.SOURCES:
        text = (decode_products.NATIVE / source).read_bytes()
        (tmp_path / source).write_bytes(text + b"\n" * source.endswith(".cu"))
    monkeypatch.setattr(decode_products, "NATIVE", tmp_path)
    assert module_name() != before
