"""What each rank holds, what it is told, and what cannot be split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from appliance.config.compose import compose
from appliance.planning import plan_recipe
from bench.reference import Recorder, engine_options, greedy
from engine.core import Engine
from engine.errors import DeviceMissing, ModelUnsupported
from engine.memory.checkpoint import read_checkpoint
from engine.memory.plan import GIB, PlanError, plan
from engine.memory.shares import undivided
from engine.models.loader import load_model
from engine.parallel.orders import Kind, kind_of, numbers_of, order, run_of, run_order
from engine.parallel.ranks import Ranks
from engine.parallel.shard import VocabularyPart, load_share, part
from engine.request import Request
from engine.scheduling.batch import Batch, build_batch
from tests.engine.running.test_oracle import words

Folder = Callable[[str], Path]


def planned(folder: Path, ranks: int, **changes: object):  # type: ignore[no-untyped-def]
    settings = {"max_sequences": 8, "encoder_cache_bytes": 0, "modalities": ()} | changes
    return plan(engine_options(folder, tensor_parallel=ranks, **settings), 4 * GIB)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen2_vl", "odd"])
def test_rank_0_holds_what_the_plan_says_and_the_other_no_more(
    family: str, checkpoint: Folder
) -> None:
    folder = checkpoint(family)
    towers = ("image",) if family == "qwen2_vl" else ()
    whole = load_model(str(folder), "float32", "cpu", towers)
    held = []
    for rank in (0, 1):
        loaded = load_share(
            str(folder), "float32", "cpu", towers if rank == 0 else (), rank=rank, ranks=2
        )
        held.append(sum(p.numel() for p in loaded.model.parameters()))
        assert loaded.shape.kv_heads * 2 == whole.shape.kv_heads
        assert loaded.vocabulary == whole.vocabulary
        assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    made, alone = planned(folder, 2, modalities=towers), planned(folder, 1, modalities=towers)
    assert made.weights_bytes == 4 * held[0]
    assert held[1] <= held[0]
    assert made.parameters == alone.parameters == sum(p.numel() for p in whole.model.parameters())
    assert made.kv_bytes_per_token * 2 == alone.kv_bytes_per_token
    assert made.activation_bytes < alone.activation_bytes
    assert made.tokens == alone.tokens  # both have room for all that may run
    small = planned(folder, 2, kv_cache_gb=0.01)
    assert small.pages > planned(folder, 1, kv_cache_gb=0.01).pages * 1.9


def test_a_share_is_read_from_the_mapped_file(checkpoint: Folder) -> None:
    """Nothing is copied while loading, so no rank ever holds the whole model."""
    folder = checkpoint("llama")
    loaded = load_share(str(folder), "float32", "cpu", rank=1, ranks=2)
    layer = loaded.stack.layers[0]
    for linear in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp.down_proj):
        assert mapped_file(linear.weight) == str(folder / "model.safetensors")
    assert mapped_file(torch.ones(5)) != str(folder / "model.safetensors")


def mapped_file(tensor: torch.Tensor) -> str:
    """Which file the tensor's memory is mapped from."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        first, end = (int(address, 16) for address in fields[0].split("-"))
        if first <= tensor.data_ptr() < end:
            return fields[5] if len(fields) > 5 else ""
    raise AssertionError("the tensor lies nowhere")


def test_pieces_make_the_whole_and_are_of_one_size() -> None:
    for size in (1, 6, 7, 8):
        tensor = torch.arange(size * 3).view(size, 3).float()
        for ranks in (2, 3, 4):
            pieces = [part(tensor, 0, rank, ranks) for rank in range(ranks)]
            assert len({piece.shape for piece in pieces}) == 1
            assert torch.equal(torch.cat(pieces)[:size], tensor)
            columns = [part(tensor.T, 1, rank, ranks) for rank in range(ranks)]
            assert torch.equal(torch.cat(columns, dim=1)[:, :size], tensor.T)
            tokens = torch.tensor([0, size - 1, size * ranks, -5, size // 2])
            found = sum(VocabularyPart(piece, r)(tokens) for r, piece in enumerate(pieces))
            assert isinstance(found, torch.Tensor)
            assert torch.equal(found[[0, 1, 4]], tensor[[0, size - 1, size // 2]])
            assert not found[2:4].any()


def test_orders_arrive_as_they_were_given(checkpoint: Folder) -> None:
    recorder = Recorder(Engine(engine_options(checkpoint("qwen2_vl"), max_tokens_per_step=23)))
    recorder.run(
        Request("a", words(50, 1), greedy(4, prompt_logprobs=0)),
        Request("b", words(9, 2), greedy(9)),
    )
    assert len(recorder.batches) > 5
    for batch in recorder.batches:
        token_ids = batch.token_ids + 7
        message = run_order(batch, token_ids, eager=batch.tokens > 1)
        assert kind_of(message) is Kind.RUN
        found, eager = run_of(message, batch.page_size)
        assert eager == (batch.tokens > 1)
        assert torch.equal(found.token_ids, token_ids)
        for name in Batch.__slots__:
            sent, got = getattr(batch, name), getattr(found, name)
            if isinstance(sent, torch.Tensor) and name != "token_ids":
                assert torch.equal(sent, got)
                assert sent.dtype == got.dtype
            elif name not in ("slices", "token_ids"):
                assert sent == got
    for kind, numbers in ((Kind.STORE, [5]), (Kind.RECORD, []), (Kind.RECORD, [1, 2])):
        message = order(kind, *numbers)
        assert (kind_of(message), numbers_of(message)) == (kind, numbers)


def test_what_is_told_of_a_decode_step_is_small() -> None:
    """A header, seven numbers a sequence and its pages: no tokens of before, no text."""
    from engine.scheduling.scheduler import Slice
    from engine.scheduling.sequence import Sequence

    slices = []
    for index in range(8):
        request = Request(f"r{index}", words(1000, index), greedy(5))
        positions = torch.arange(1000)[None]
        sequence = Sequence(request, 0, index, b"", positions, 0, list(request.prompt_ids))
        sequence.pages = list(range(1, 64))
        slices.append(Slice(sequence, 999, 1000))
    batch = build_batch(slices, 16)
    message = run_order(batch, batch.token_ids, eager=False)
    assert len(message) == 4 * (8 + 8 * 7 + 2 + 8 * 63)


@pytest.mark.parametrize(
    ("sizes", "ranks", "possible"),
    [
        ((4, 2, 128), 3, "1, or 2 can be set"),
        ((4, 2, 128), 4, "1, or 2 can be set"),
        ((28, 4, 18944), 3, "1, 2, or 4 can be set"),
        ((9, 3, 1536), 2, "1, or 3 can be set"),
        ((32, 1, 128), 2, "1 can be set"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_those_that_do(
    sizes: tuple[int, int, int], ranks: int, possible: str
) -> None:
    reason = undivided(*sizes, ranks)
    assert reason is not None
    assert f"parallelism.tensor={ranks}" in reason
    assert reason.endswith(possible.replace(", or", " or"))
    assert undivided(*sizes, 1) is None


def test_more_ranks_than_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceMissing, match=r"parallelism\.tensor=2 .* this machine shows 1"):
        Ranks(0, 2, [], torch.device("cuda", 0))


def test_the_recipe_is_refused_before_anything_is_loaded(checkpoint: Folder) -> None:
    folder = checkpoint("llama")
    told = [f"model.path={folder}", "media.image.limit=0"]
    with pytest.raises(PlanError, match=r"parallelism\.tensor=3 does not divide .* 1 or 2 can"):
        plan_recipe(compose([*told, "parallelism.tensor=3"]).config, folder)
    with pytest.raises(PlanError, match=r"parallelism\.tensor=2 .* engine\.fuse=true"):
        plan_recipe(compose([*told, "parallelism.tensor=2", "engine.fuse=false"]).config, folder)
    config = compose([*told, "parallelism.tensor=2", "engine.threads=3"]).config
    made = plan_recipe(config, folder)
    assert made.ranks == 2
    options = made.resolved
    assert (options.tensor_parallel, options.threads) == (2, 3)
    with pytest.raises(ModelUnsupported, match=r"tensor=3 does not divide"):
        load_share(str(folder), "float32", "cpu", rank=0, ranks=3)
    assert read_checkpoint(folder).heads == 4
