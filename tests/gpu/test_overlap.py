"""A step is launched before the tokens of the one before are known, and nobody can tell."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.reference import Recorder, engine_options, greedy, picture, prompt_with_images
from bench.stand_in.platforms import Recording, StandIn, cuda_path
from engine.core import Engine
from engine.device.device import HostCopy
from engine.errors import DeviceLost, EngineDead
from engine.process.client import EngineClient
from engine.process.engine_process import run_engine
from engine.process.frames import frame_pipe
from engine.process.messages import Failed
from engine.request import Output, Request
from engine.running.runner import Computed
from engine.scheduling.batch import Batch
from tests.engine.running.test_oracle import words

Folder = Callable[[str], Path]


@pytest.fixture
def engine(checkpoint: Folder) -> Engine:
    return cuda_path(checkpoint("llama"), Recording(), graphs=True)


def test_the_host_asks_for_tokens_only_after_the_next_step_is_launched(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    recorder = Recorder(cuda_path(checkpoint("llama")))
    run, tolist = recorder.engine._runner.run, HostCopy.tolist

    def launched(batch: Batch) -> Computed:
        order.append("launch")
        return run(batch)

    def asked(copy: HostCopy) -> object:
        order.append("ask")
        return tolist(copy)

    recorder.engine._runner.run = launched  # type: ignore[method-assign]
    monkeypatch.setattr(HostCopy, "tolist", asked)
    recorder.run(Request("r", words(10, 1), greedy(5)))
    assert order == ["launch", *["launch", "ask"] * 4, "ask"]
    assert len(recorder.tokens["r", 0]) == 5


def test_the_reasons_to_stop_and_no_token_too_many(engine: Engine) -> None:
    recorder = Recorder(engine)
    recorder.run(Request("free", words(10, 1), greedy(8)))
    produced = recorder.tokens["free", 0]
    assert len(recorder.batches) == 8  # a known length needs no surplus step
    stop = produced[3]
    first = produced.index(stop)
    steps = engine.stats().steps
    recorder.run(Request("stop", words(10, 1), greedy(8, stop_token_ids=frozenset({stop}))))
    assert recorder.tokens["stop", 0] == produced[: first + 1]
    assert recorder.outputs[-1].finish_reason == "stop"
    assert engine.stats().steps - steps == first + 2  # the last one's token is dropped
    assert engine.stats().pages_used == 0
    engine._eos_ids = frozenset({stop})
    recorder.run(Request("ended", words(10, 1), greedy(8, ignore_eos=False)))
    assert recorder.tokens["ended", 0] == produced[: first + 1]
    assert engine.stats().generated_tokens == 8 + 2 * (first + 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0, "seed": 3},
        {"temperature": 0.8, "seed": 3, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
        {"repetition_penalty": 1.8},
        {"frequency_penalty": 1.5, "presence_penalty": 1.0},
        {"temperature": 1.0, "seed": 4, "frequency_penalty": 1.5, "repetition_penalty": 1.3},
        {"logit_bias": {7: 40.0, 8: 40.0}, "frequency_penalty": 2.0},
        {"min_tokens": 5, "ignore_eos": False},
        {"logprobs": 3, "prompt_logprobs": 2},
    ],
    ids=str,
)
def test_answers_are_those_of_the_cpu(options: dict[str, object], checkpoint: Folder) -> None:
    requests = [
        Request(f"r{i}", words(n, n), greedy(12, **options), n=1 + i % 2)
        for i, n in enumerate((3, 20, 61, 7))
    ]
    requests.append(Request("plain", words(9, 9), greedy(12)))
    here = Recorder(Engine(engine_options(checkpoint("llama"), max_tokens_per_step=40)))
    there = Recorder(
        cuda_path(checkpoint("llama"), Recording(), graphs=True, max_tokens_per_step=40)
    )
    here.run(*requests)
    there.run(*requests)
    assert there.tokens == here.tokens
    for mine, theirs in zip(
        sorted(there.outputs, key=_key), sorted(here.outputs, key=_key), strict=True
    ):
        for one, other in zip(
            (mine.logprobs or []) + (mine.prompt_logprobs or []),
            (theirs.logprobs or []) + (theirs.prompt_logprobs or []),
            strict=True,
        ):
            if one is None or other is None:
                assert one is other
                continue
            assert one.token_id == other.token_id
            assert abs(one.logprob - other.logprob) < 1e-4
            assert [token for token, _ in one.top] == [token for token, _ in other.top]


def _key(output):  # type: ignore[no-untyped-def]
    return output.request_id, output.index


def test_two_hundred_requests_on_a_pool_for_twenty(checkpoint: Folder) -> None:
    folder = checkpoint("llama")
    alone = Recorder(Engine(engine_options(folder)))
    together = Recorder(cuda_path(folder, Recording(), graphs=True, pages=40, max_sequences=64))
    requests = [Request(f"r{i}", words(20, i), greedy(8)) for i in range(200)]
    together.run(*requests)
    assert together.engine.stats().pages_used == 0
    for request in requests[::40]:
        alone.run(request)
        assert together.tokens[request.id, 0] == alone.tokens[request.id, 0]


def test_abort_frees_the_pages_at_once_whatever_is_in_flight(engine: Engine) -> None:
    for n in (1, 3):
        for steps in (0, 1, 2, 5):
            engine.add(Request("gone", words(100, 0), greedy(50), n=n))
            for _ in range(steps):
                engine.step()
            engine.abort("gone")
            assert engine.stats().pages_used == 0
            while engine.has_work():
                assert engine.step() == []
    recorder = Recorder(engine)
    recorder.run(Request("gone", words(10, 0), greedy(4)))  # the same name, anew
    assert len(recorder.tokens["gone", 0]) == 4


def test_a_step_that_raises_ends_one_request_only(engine: Engine) -> None:
    recorder = Recorder(engine)
    run = engine._runner.run

    def failing(batch: Batch) -> Computed:
        if any(item.sequence.request.id == "bad" and item.start > 22 for item in batch.slices):
            raise RuntimeError("planted")
        return run(batch)

    engine._runner.run = failing  # type: ignore[method-assign]
    recorder.run(*(Request(name, words(20, 0), greedy(9)) for name in ("a", "bad", "b")))
    last = {output.request_id: output for output in recorder.outputs}
    assert last["bad"].finish_reason == "error"
    assert "planted" not in (last["bad"].error or "")
    assert [last[name].finish_reason for name in "ab"] == ["length", "length"]
    assert recorder.tokens["a", 0] == recorder.tokens["b", 0]
    assert len(recorder.tokens["a", 0]) == 9
    assert engine.stats().pages_used == 0


def test_a_lost_device_ends_the_engine_and_nothing_is_tried_again(checkpoint: Folder) -> None:
    class Failing(StandIn):
        broken = False

        def lost(self) -> bool:
            return self.broken

    platform = Failing()
    engine = cuda_path(checkpoint("llama"), platform)
    run, launches = engine._runner.run, []

    def faulty(batch: Batch) -> Computed:
        launches.append(batch)
        if len(launches) == 4:
            platform.broken = True
            raise RuntimeError("an illegal memory access was encountered")
        return run(batch)

    engine._runner.run = faulty  # type: ignore[method-assign]
    for name in "ab":
        engine.add(Request(name, words(20, 0), greedy(9)))
    for _ in range(3):
        engine.step()
    with pytest.raises(DeviceLost):
        engine.step()
    assert len(launches) == 4


def test_a_device_lost_while_tokens_are_awaited_is_noticed(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(StandIn):
        def lost(self) -> bool:
            return True

    engine = cuda_path(checkpoint("llama"), Failing())

    def faulty(copy: HostCopy) -> object:
        raise RuntimeError("an illegal memory access was encountered")

    engine.add(Request("r", words(20, 0), greedy(9)))
    engine.step()
    monkeypatch.setattr(HostCopy, "tolist", faulty)
    with pytest.raises(DeviceLost):
        engine.step()


def test_pictures_take_part(checkpoint: Folder) -> None:
    folder = checkpoint("qwen2_vl")
    tokens, media = prompt_with_images(folder, [[5, 6, 7], picture(60, 90, 1), [8, 9]])
    here = Recorder(Engine(engine_options(folder)))
    there = Recorder(cuda_path(folder, Recording(), graphs=True))
    for recorder in (here, there):
        recorder.run(Request("image", tokens, greedy(9), media, n=3))
    assert there.tokens == here.tokens


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lost_device_ends_running_requests_with_the_reason(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = Engine.step, []

    def failing(engine: Engine) -> list[Output]:
        steps.append(engine)
        if len(steps) == 5:
            raise DeviceLost("the device failed while computing")
        return step(engine)

    monkeypatch.setattr(Engine, "step", failing)

    async def scenario() -> None:
        client = EngineClient(engine_options(checkpoint("llama")), in_process=True)
        await client.start()
        stream = client.submit(Request("r", words(5, 1), greedy(400)))
        with pytest.raises(EngineDead, match="the device failed"):
            async for _ in stream:
                pass
        assert "the device failed" in await asyncio.wait_for(client.died(), 10)
        with pytest.raises(EngineDead):
            client.submit(Request("late", [5], greedy(1)))
        assert client._thread is not None
        client._thread.join(10)

    asyncio.run(scenario())


def test_the_engine_process_of_a_lost_device_exits_with_an_error(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(engine: Engine) -> list[Output]:
        raise DeviceLost("the device failed while computing")

    monkeypatch.setattr(Engine, "step", failing)
    _, requests = multiprocessing.Pipe()
    ours, theirs = frame_pipe()
    with pytest.raises(DeviceLost):  # out of the process's body: exit code 1
        run_engine(engine_options(checkpoint("llama")), requests, theirs)
    received = []
    with contextlib.suppress(EOFError):
        while True:
            received += ours.receive()
    assert received[-1] == Failed("the device failed while computing")
