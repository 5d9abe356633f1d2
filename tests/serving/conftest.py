"""Servers started by the launcher, as a user would, on tiny checkpoints."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import openai
import pytest

from tests.checkpoints import WRITERS

START_SECONDS = 120.0
STOP_SECONDS = 30.0
LISTENING = re.compile(r"listening on (http://[^\s\"]+)")


@dataclass
class Server:
    """A server process: its address, and all it has said so far."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    listening: threading.Event = field(default_factory=threading.Event)
    base_url: str = ""
    key: str = "none"

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.base_url}/v1", api_key=self.key, max_retries=0)

    def status(self, path: str) -> int:
        """Status of a GET; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(self.base_url + path, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refused:
            return refused.code
        except OSError:
            return 0

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.status("/readyz") != 200:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := LISTENING.search(line):
                self.base_url = found[1]
                self.listening.set()
        self.listening.set()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        finally:
            self.process.kill()


def metric(server: Server, name: str) -> float:
    """The first value of a metric."""
    asked = urllib.request.Request(server.base_url + "/metrics")
    asked.add_header("Authorization", f"Bearer {server.key}")
    with urllib.request.urlopen(asked, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name))


@contextlib.contextmanager
def serving(
    *overrides: str,
    ready: bool = True,
    port: str = "0",
    files: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run `appliance` with these overrides, on a free port unless one is given.

    `files` is how many it may open; `environment` is added to this process's own.
    """
    command = [sys.executable, "-m", "appliance", *overrides, f"server.port={port}"]
    bounded = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (files or 0, files or 0))
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
        preexec_fn=bounded if files else None,
        env={**os.environ, **(environment or {})},
    )
    server = Server(process)
    reader = threading.Thread(target=server.read, daemon=True)
    reader.start()
    try:
        assert server.listening.wait(START_SECONDS), server.output
        assert server.base_url, server.output
        if ready:
            server.wait_ready()
        yield server
    finally:
        server.stop()
        reader.join(5)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint of a family, written once a session."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(family: str) -> Path:
        path = root / family
        if not path.exists():
            WRITERS[family](path)
        return path

    return folder


@pytest.fixture(scope="session")
def tiny_llama(checkpoint: Callable[[str], Path]) -> Iterator[Server]:
    """A server of a tiny text model."""
    overrides = ["model.name=tiny", "media.image.limit=0", "engine.threads=1"]
    with serving(f"model.path={checkpoint('llama')}", *overrides) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_qwen2_vl(checkpoint: Callable[[str], Path]) -> Iterator[Server]:
    """A server of a tiny Qwen2-VL, by its recipe."""
    told = [f"model.path={checkpoint('qwen2_vl')}", "model.name=tiny", "model.max_len=1024"]
    with serving("recipe=qwen2_vl", *told, "engine.threads=1") as server:
        yield server


@pytest.fixture(scope="session")
def tiny_gemma3(checkpoint: Callable[[str], Path]) -> Iterator[Server]:
    """A server of a tiny Gemma 3, by its recipe."""
    told = [f"model.path={checkpoint('gemma3')}", "model.name=tiny", "model.max_len=1024"]
    with serving("recipe=gemma_3", *told, "engine.threads=1") as server:
        yield server
