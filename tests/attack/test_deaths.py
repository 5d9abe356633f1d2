"""Whatever dies, the rest knows: streams end, nothing is orphaned, one line says why."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.attack.wire import completion, post, until, wire
from tests.serving.conftest import Server, metric, serving

STREAMS = 50
GONE_SECONDS = 5.0


def family_of(server: Server) -> dict[str, psutil.Process]:
    """The processes of a server, by what they are."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    found = {}
    for child in children:
        try:
            command = " ".join(child.cmdline())
        except psutil.NoSuchProcess:  # a zombie is one too
            continue
        if "appliance.media" in command:
            forked = child.ppid() != server.process.pid
            found["media worker" if forked else "fork server"] = child
        elif "resource_tracker" in command:
            found["tracker"] = child
        else:
            rank = sum(name.startswith("engine") for name in found)
            found["engine" if not rank else f"engine rank {rank}"] = child
    return found


def is_there(server: Server, name: str) -> bool:
    return name in family_of(server)


def shared_memory() -> set[str]:
    """What Python, torch and OpenMP leave in /dev/shm when they leave something."""
    names = ("sem.", "mp-", "psm_", "torch_", "__KMP", "nccl")
    return {name for name in os.listdir("/dev/shm") if name.startswith(names)}


@contextmanager
def streams(server: Server, **fields: object) -> Iterator[list[concurrent.futures.Future[bytes]]]:
    """Fifty streams under way, each of which ends in what came of it."""
    asked = completion(max_tokens=400, ignore_eos=True, stream=True, **fields)

    def follow() -> bytes:
        with wire(server.base_url) as client:
            client.socket.settimeout(60)
            client.send(post("/v1/completions", asked))
            return client.rest()

    with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
        begun = [pool.submit(follow) for _ in range(STREAMS)]
        assert until(lambda: metric(server, "appliance_num_requests_running") > 2)
        yield begun


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them end in time; zombies of this test's own child do not count."""
    _, alive = psutil.wait_procs(processes, GONE_SECONDS)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


@pytest.fixture
def overrides(checkpoint: Callable[[str], Path]) -> list[str]:
    path = checkpoint("qwen2_vl")
    return [f"model.path={path}", "recipe=qwen2_vl", "model.name=tiny", "model.max_len=1024"]


def test_a_worker_and_its_parent_are_replaced_and_an_engine_ends_the_server(
    overrides: list[str],
) -> None:
    memory = shared_memory()
    with serving(*overrides, "engine.threads=1") as server:
        with streams(server) as begun:
            for victim in ("media worker", "fork server"):
                assert until(partial(is_there, server, victim))  # replaced, if it was killed
                family_of(server)[victim].kill()
                assert server.status("/readyz") == 200
            everybody = list(family_of(server).values())
            family_of(server)["engine"].kill()
        for stream in begun:
            said = stream.result()
            assert b'"error"' in said
            # an event of a stream that had begun, a body of one that had not
            assert said.count(b"data: [DONE]") == 1 or said.startswith(b"HTTP/1.1 500")
        assert server.process.wait(20) == 1
        assert gone(everybody)
    assert sum("the engine has stopped" in line for line in server.lines) == 1
    assert "Traceback" not in server.output
    assert shared_memory() <= memory


@pytest.mark.parametrize("busy", [True, False])
def test_nothing_is_left_of_a_killed_server_and_another_takes_its_place(
    overrides: list[str], busy: bool
) -> None:
    memory = shared_memory()
    with serving(*overrides, "engine.threads=1") as server:
        everybody = list(family_of(server).values())
        assert len(everybody) >= 3
        if busy:
            with streams(server):
                server.process.kill()
        else:  # an engine that would not look at its pipe
            family_of(server)["engine"].send_signal(signal.SIGSTOP)
            server.process.kill()
        assert gone(everybody)
        port = server.base_url.rpartition(":")[2]
    assert shared_memory() <= memory
    if busy:
        with serving(*overrides, "engine.threads=1", port=port) as again:
            assert again.base_url == server.base_url
            with wire(again.base_url) as client:
                client.send(post("/v1/completions", completion()))
                assert client.answer().status == 200


def test_a_server_that_is_killed_while_it_loads_leaves_nothing(overrides: list[str]) -> None:
    with serving(*overrides, ready=False) as server:
        assert until(lambda: len(family_of(server)) >= 2)
        everybody = list(family_of(server).values())
        server.process.kill()
        assert gone(everybody)


def test_a_rank_that_dies_ends_all(checkpoint: Callable[[str], Path]) -> None:
    told = [f"model.path={checkpoint('llama')}", "model.name=tiny", "media.image.limit=0"]
    with serving(*told, "parallelism.tensor=2", "engine.threads=1") as server:
        everybody = list(family_of(server).values())
        with streams(server) as begun:
            family_of(server)["engine rank 1"].kill()
        assert all(b'"error"' in stream.result() for stream in begun)
        assert server.process.wait(20) == 1
        assert gone(everybody)
    reason = next(line for line in server.lines if "the engine has stopped" in line)
    assert "SIGKILL" in reason


def test_an_engine_that_stands_still_is_told_by_the_probe_and_ends_the_server(
    checkpoint: Callable[[str], Path],
) -> None:
    told = [f"model.path={checkpoint('llama')}", "model.name=tiny", "media.image.limit=0"]
    with serving(*told, "engine.threads=1", "engine.step_seconds=5") as server:
        everybody = list(family_of(server).values())
        with streams(server) as begun:
            family_of(server)["engine"].send_signal(signal.SIGSTOP)
            assert server.status("/livez") == 200
            assert until(lambda: server.status("/livez") == 503, 6)
        assert all(b'"error"' in stream.result() for stream in begun)
        assert server.process.wait(20) == 1
        assert gone(everybody)
    assert "no step has ended for 5 seconds" in server.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_lets_answers_finish(
    overrides: list[str], number: signal.Signals
) -> None:
    with serving(*overrides, "engine.threads=1") as server:
        everybody = list(family_of(server).values())
        with streams(server) as begun:
            for process in [*everybody, server.process]:  # as `timeout`, systemd and terminals do
                process.send_signal(number)
        for stream in begun:  # one may have come too late to be taken
            said = stream.result()
            assert said.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") or b'"draining"' in said
            assert b'"error"' not in said or b'"draining"' in said
        assert sum(b"[DONE]" in stream.result() for stream in begun) > 2
        assert server.process.wait(20) == 0
        assert gone(everybody)
    assert sum("a second Ctrl-C or SIGTERM ends them now" in line for line in server.lines) == 1
    assert "Traceback" not in server.output


def test_a_second_signal_to_all_processes_ends_them(overrides: list[str]) -> None:
    with serving(*overrides, "engine.threads=1") as server:
        everybody = list(family_of(server).values())
        with streams(server):
            for wait in (lambda: "draining" in server.output, lambda: True):
                for process in [*everybody, server.process]:
                    process.send_signal(signal.SIGINT)
                assert until(wait)
            assert server.process.wait(10) == 1
        assert gone(everybody)
    assert "Traceback" not in server.output


def test_a_signal_to_all_processes_while_they_start_ends_them(overrides: list[str]) -> None:
    with serving(*overrides, "media.workers=8", ready=False) as server:
        assert until(lambda: len(family_of(server)) >= 2)
        everybody = list(family_of(server).values())
        for process in [*everybody, server.process]:
            process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert gone(everybody)
    assert "Traceback" not in server.output


@pytest.mark.parametrize("milliseconds", [0, 50, 150, 300, 450, 600, 800, 1000])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_first_second_says_nothing(milliseconds: int, number: int) -> None:
    command = [sys.executable, "-m", "appliance", "recipe=demo", "server.port=0"]
    begun = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert until(lambda: caught(begun.pid, signal.SIGTERM))  # Python itself has begun
        time.sleep(milliseconds / 1000)
        begun.send_signal(number)
        _, said = begun.communicate(timeout=20)
    finally:
        begun.kill()
    assert begun.returncode in (0, 128 + number)  # 0 once it serves
    assert "Traceback" not in said


def caught(process: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{process}/status").read_text()
    [mask] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (number - 1) & 1)
