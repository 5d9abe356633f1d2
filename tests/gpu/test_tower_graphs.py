"""Small pictures through recorded towers: which are replayed, and what places too many may do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from appliance.config.compose import compose
from appliance.planning import engine_options as planned_options
from bench.reference import (
    TOLERANCE,
    Recorder,
    Reference,
    compare,
    greedy,
    picture,
    prompt_with_images,
)
from bench.reference import engine_options as tiny_options
from bench.stand_in.platforms import Recording, StandIn, cuda_path
from engine.core import Engine
from engine.device.device import Graph
from engine.errors import EngineError
from engine.memory.card_memory import GRAPH_BYTES
from engine.memory.plan import PlanError, encoder_bytes, plan
from engine.models.registry import family_for
from engine.request import MediaItem, Request
from engine.running.exercise import images
from engine.running.tower_graphs import TowerGraphs
from tests.engine.running.test_oracle import VISION, words
from tests.engine.running.test_video_oracle import prompt_of
from tests.gpu.test_prefill_graphs import Spoiling
from tests.gpu.test_towers import OnCard, Watched

Folder = Callable[[str], Path]
Model = Callable[[str], Reference]


def recorded(folder: Path, platform: Recording | None = None, **changes: object) -> Engine:
    told: dict[str, object] = {"graphs": True, "tower_graphs": True, "max_tokens_per_step": 512}
    return cuda_path(folder, platform or Recording(), **(told | changes))


def graphs_of(engine: Engine) -> TowerGraphs:
    graphs = engine._runner.media.graphs
    assert graphs is not None
    return graphs


def items_of(folder: Path, *sizes: tuple[int, int]) -> list[MediaItem]:
    pictures: list[list[int] | Image.Image] = [
        picture(*size, seed) for seed, size in enumerate(sizes)
    ]
    return prompt_with_images(folder, pictures)[1]


def replays(platform: Recording) -> int:
    return sum(line.startswith("replay") for line in platform.log)


def furthest(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max((one - other).abs().max().item() for one, other in pairs)


def alone(reference: Reference, items: list[MediaItem]) -> list[torch.Tensor]:
    """What transformers' tower gives of each item by itself."""
    features = {"image": "get_image_features", "video": "get_video_features"}
    with torch.no_grad():
        return [
            getattr(reference.model, features[item.modality])(
                **reference.family.tower_inputs(item)
            ).pooler_output[0]
            for item in items
        ]


@pytest.mark.parametrize("family", VISION)
def test_pictures_agree_with_transformers_whatever_a_step_has_of_them(
    family: str, checkpoint: Folder, reference: Model
) -> None:
    folder, platform = checkpoint(family), Recording()
    engine = recorded(folder, platform)
    sizes = [(60, 90), (200, 120), (56, 56), (120, 60)]
    for count in range(1, 5):
        items = items_of(folder, *sizes[:count])
        platform.log.clear()
        found = engine._runner.media.encode(items)
        assert replays(platform) == 1
        assert [len(one) for one in found] == [item.length for item in items]
        assert furthest(found, alone(reference(family), items)) < TOLERANCE
    apart = alone(reference(family), items[::-1])
    assert found[0].shape != apart[0].shape or furthest(found[:1], apart[:1]) > 100 * TOLERANCE


@pytest.mark.parametrize("family", VISION)
def test_logits_agree_with_transformers(family: str, checkpoint: Folder, reference: Model) -> None:
    folder, platform = checkpoint(family), Spoiling()
    recorder = Recorder(recorded(folder, platform, prefill_graphs=200))
    requests = []
    for index, parts in enumerate(
        (
            [words(5, 1), picture(60, 90, 1), words(9, 2)],
            [picture(200, 120, 2), words(20, 3), picture(60, 90, 1), words(3, 4)],
            [words(40, 5), picture(200, 120, 3), words(1, 6)],
        )
    ):
        tokens, media = prompt_with_images(folder, parts)  # type: ignore[arg-type]
        requests.append(Request(f"r{index}", tokens, greedy(4), media))
    recorder.run(*requests)
    assert compare(recorder, reference(family), requests) < TOLERANCE


def test_videos_are_recorded_frame_by_frame(checkpoint: Folder, reference: Model) -> None:
    folder, platform = checkpoint("qwen2_vl"), Recording()
    engine = recorded(folder, platform, modalities=("image", "video"))
    frames = [picture(60, 90, seed) for seed in range(6)]
    items = prompt_of(folder, [frames, picture(200, 120, 9)])[1]
    platform.log.clear()
    found = engine._runner.media.encode(items)
    assert replays(platform) == 1
    assert furthest(found, alone(reference("qwen2_vl"), items)) < TOLERANCE


def test_sizes_are_those_that_a_step_can_have(checkpoint: Folder) -> None:
    assert graphs_of(recorded(checkpoint("llava"))).sizes == [1, 2, 4]
    tokens = family_for(checkpoint("llava")).image_tokens(56, 56)
    few = recorded(checkpoint("llava"), max_tokens_per_step=2 * tokens)
    assert graphs_of(few).sizes == [1, 2]
    assert graphs_of(recorded(checkpoint("qwen2_vl"))).sizes == list(range(128, 1025, 128))
    few = recorded(checkpoint("qwen2_vl"), max_tokens_per_step=64, modalities=("image",))
    assert graphs_of(few).sizes == [128, 256]


@pytest.mark.parametrize(("family", "most"), [("qwen2_vl", 256), ("llava", 4), ("gemma3", 4)])
def test_as_much_as_is_recorded_is_replayed_and_not_one_place_more(
    family: str, most: int, checkpoint: Folder, reference: Model
) -> None:
    folder, platform = checkpoint(family), Recording()
    tokens = 64 if family == "qwen2_vl" else 512
    engine = recorded(folder, platform, max_tokens_per_step=tokens, modalities=("image",))
    graphs, kind = graphs_of(engine), family_for(folder)
    assert graphs.sizes[-1] == most
    fitting = items_of(folder, (56, 56))
    while kind.places(fitting) < most:
        fitting += [dataclasses.replace(fitting[0])]
    assert kind.places(fitting) == most
    for items, expected in ((fitting, 1), ([*fitting, fitting[0]], 0)):
        platform.log.clear()
        found = engine._runner.media.encode(items)
        assert replays(platform) == expected
        assert furthest(found, alone(reference(family), items)) < TOLERANCE


@pytest.mark.parametrize("family", VISION)
def test_a_picture_owes_nothing_to_those_before(family: str, checkpoint: Folder) -> None:
    """To the last bit; what a replay gave is not what the next one overwrites."""
    folder = checkpoint(family)
    small, *large = items_of(folder, (56, 56), (200, 120), (120, 200), (60, 90))
    fresh = recorded(folder)._runner.media.encode([small])
    engine = recorded(folder)
    before = engine._runner.media.encode(large)
    kept = [one.clone() for one in before]
    with torch.inference_mode():
        graphs_of(engine)._inputs[0].fill_(torch.nan)
    found = engine._runner.media.encode([small])
    assert torch.equal(found[0], fresh[0])
    assert all(map(torch.equal, before, kept))


@pytest.mark.parametrize("family", VISION)
def test_a_tower_that_is_not_fed_is_noticed(
    family: str, checkpoint: Folder, reference: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: a replay of the picture before gives other embeddings."""
    folder = checkpoint(family)
    engine = recorded(folder)
    first, second = (items_of(folder, (60, 90)), items_of(folder, (60, 90), (60, 90))[1:])
    engine._runner.media.encode(first)
    graphs = graphs_of(engine)
    monkeypatch.setattr(graphs, "_inputs", tuple(map(torch.clone, graphs._inputs)))
    assert furthest(engine._runner.media.encode(second), alone(reference(family), second)) > (
        100 * TOLERANCE
    )


def test_pictures_that_see_each_other_are_noticed(
    checkpoint: Folder, reference: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: what keeps segments apart is left out."""
    from engine.models import qwen2_vl

    monkeypatch.setattr(
        qwen2_vl, "_between", lambda segments, dtype: torch.zeros(len(segments), len(segments))
    )
    folder = checkpoint("qwen2_vl")
    engine, items = recorded(folder), items_of(folder, (60, 90), (200, 120))
    found = engine._runner.media.encode(items)
    assert furthest(found, alone(reference("qwen2_vl"), items)) > 100 * TOLERANCE


@pytest.mark.parametrize("family", VISION)
def test_what_is_recorded_asks_the_host_for_nothing(family: str, checkpoint: Folder) -> None:
    folder = checkpoint(family)
    engine = cuda_path(folder, StandIn(), tower_graphs=True)
    loaded, items = engine._runner.loaded, items_of(folder, (60, 90), (56, 56))
    OnCard.waits.clear()
    with torch.inference_mode():
        tensors = loaded.family.tower_tensors(loaded.model, items, Watched().upload)
        embedded = loaded.family.tower_work(loaded.model, tensors)
    assert type(embedded) is OnCard
    assert OnCard.waits == []


def test_recordings_share_the_pool_of_decoding(checkpoint: Folder) -> None:
    pools: set[int] = set()

    class Pooled(Recording):
        def graph_pool(self) -> Any:
            return object()

        def capture(self, work: Callable[[], None], pool: Any) -> Graph:
            pools.add(id(pool))
            return super().capture(work, pool)

    recorded(checkpoint("llava"), Pooled(), prefill_graphs=16)
    assert len(pools) == 1


def test_a_tower_that_cannot_be_recorded_is_refused(checkpoint: Folder) -> None:
    class Unrecordable(Recording):
        def capture(self, work: Callable[[], None], pool: Any) -> Graph:
            graph = super().capture(work, pool)
            if self._graphs > 5:  # decoding can be
                raise RuntimeError("operation not permitted when stream is capturing")
            return graph

    with pytest.raises(EngineError, match=r"set engine\.tower_graphs=false"):
        recorded(checkpoint("llava"), Unrecordable(), max_sequences=16)


@pytest.mark.parametrize(
    ("family", "told", "said"),
    [
        ("llava", ["engine=cpu"], r"engine\.tower_graphs=true needs engine=cuda"),
        ("llava", ["engine=cuda", "engine.graphs=false"], r"set engine\.graphs=true"),
        (
            "llava",
            ["engine=cuda", "engine.vision_attention=auto"],
            r"set engine\.vision_attention=sdpa",
        ),
    ],
)
def test_where_it_cannot_work_the_key_is_refused(
    family: str, told: list[str], said: str, checkpoint: Folder
) -> None:
    folder = checkpoint(family)
    base = [f"model.path={folder}", *told]
    with pytest.raises(PlanError, match=said) as raised:
        planned_options(compose([*base, "engine.tower_graphs=true"]).config, folder)
    assert "\n" not in str(raised.value)
    planned_options(compose(base).config, folder)


@pytest.mark.parametrize(
    ("family", "modalities", "said"),
    [
        ("ultravox", ("audio",), r"any length.*engine\.tower_graphs=false"),
        ("llava", (), r"no request may bring.*engine\.tower_graphs=false"),
        ("llama", (), r"no request may bring.*engine\.tower_graphs=false"),
    ],
)
def test_models_without_a_tower_of_that_kind_are_refused(
    family: str, modalities: tuple[str, ...], said: str, checkpoint: Folder
) -> None:
    options = tiny_options(
        checkpoint(family), tower_graphs=True, modalities=modalities, dtype="bfloat16"
    )
    with pytest.raises(PlanError, match=said):
        plan(options, 1 << 40)


def test_a_tower_for_largest_pictures_still_takes_them(
    checkpoint: Folder, reference: Model
) -> None:
    folder, platform = checkpoint("qwen2_vl"), Recording()
    engine = recorded(folder, platform)
    items = images(engine._runner._options, family_for(folder), 224)
    platform.log.clear()
    found = engine._runner.media.encode(items)
    assert family_for(folder).places(items) > 1024
    assert replays(platform) == 0
    assert furthest(found, alone(reference("qwen2_vl"), items)) < TOLERANCE


def test_the_plan_counts_what_is_recorded(checkpoint: Folder) -> None:
    for family, sizes, patches in (("llava", 3, 4 * 17), ("qwen2_vl", 8, 1024)):
        kind = family_for(checkpoint(family))
        options = tiny_options(checkpoint(family), max_tokens_per_step=512)
        told = dataclasses.replace(options, tower_graphs=True)
        hidden, intermediate = kind.tower_width("image")
        more = encoder_bytes(told, kind, 512) - encoder_bytes(options, kind, 512)
        assert more == sizes * GRAPH_BYTES + patches * (8 * hidden + 2 * intermediate) * 4
