"""Which steps are decoded by our own products, and what is said where there are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.reference import (
    TOLERANCE,
    Recorder,
    Reference,
    compare,
    engine_options,
    greedy,
)
from bench.stand_in.platforms import Recording, cuda_path
from engine.errors import ModelUnsupported
from engine.kernels import own
from engine.kernels.needed import needed
from engine.kernels.own import decode_products, products_name, unsupported
from engine.layers.decode_products import SPLITS, deal
from engine.models.registry import family_for
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
    hopper, half, depths = (9, 0), "bfloat16", (1536, 1536, 8960)
    assert unsupported(hopper, half, 128, depths) is None
    assert "9.0" in (unsupported((8, 0), half, 128, depths) or "")
    assert "float16" in (unsupported(hopper, "float16", 128, depths) or "")
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
    before = products_name()
    for source in own.SOURCES:
        text = (own.NATIVE / source).read_bytes()
        (tmp_path / source).write_bytes(text + b"\n" * source.endswith(".cu"))
    monkeypatch.setattr(own, "NATIVE", tmp_path)
    assert products_name.__wrapped__() != before


@pytest.mark.parametrize(
    ("family", "changes", "capability", "listed"),
    [
        ("llama", {"decode_products": "own"}, (9, 0), True),
        ("qwen2_vl", {"decode_products": "auto"}, (9, 0), True),
        ("llama", {}, (9, 0), False),
        ("llama", {"decode_products": "auto"}, (8, 0), False),
        ("llama", {"decode_products": "auto", "fuse": False}, (9, 0), False),
        ("llama", {"decode_products": "auto", "dtype": "float16"}, (9, 0), False),
        ("gemma3_text", {"decode_products": "auto"}, (9, 0), False),
    ],
)
def test_the_module_is_on_the_list_where_the_engine_loads_it(
    family: str,
    changes: dict[str, object],
    capability: tuple[int, int],
    listed: bool,
    checkpoint: Folder,
) -> None:
    folder = checkpoint(family)
    options = engine_options(folder, **({"dtype": "bfloat16"} | changes))
    assert (decode_products() in needed(family_for(folder), options, [capability])) == listed
