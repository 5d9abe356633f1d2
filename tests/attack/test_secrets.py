"""Keys, tokens and signatures are in nothing that a run writes, answers, or hands to a process."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.attack.wire import completion, post, until, wire
from tests.engine.models.pictures import picture
from tests.media.origin import Origin, content, redirect, reset
from tests.media.origin import serving as serving_origin
from tests.serving.conftest import Server, serving

BY = {
    name: f"sk-{name}-{hashlib.sha256(name.encode()).hexdigest()[:24]}"
    for name in ("argument", "file", "environment", "recipe", "team", "signature", "userinfo")
}
TOKEN = f"hf_{hashlib.sha256(b'hub').hexdigest()[:30]}"
SECRETS = {**BY, "token": TOKEN}
KEYS = ("argument", "file", "environment", "recipe", "team")
ENVIRONMENT = {"SERVER_KEY": BY["environment"], "TEAM_KEY": BY["team"], "HF_TOKEN": TOKEN}
SIGNED = f"X-Amz-Signature={BY['signature']}"

RECIPE = f"""\
# @package _global_
# A recipe that holds a key.
defaults: [qwen2_vl, _self_]
server:
  tenants:
    own: {{keys: [{BY["recipe"]}]}}
    team: {{keys: ["${{oc.env:TEAM_KEY}}"]}}
"""


def found(text: str | bytes) -> set[str]:
    """The secrets that stand in a text, by name."""
    data = text.encode(errors="replace") if isinstance(text, str) else text
    return {name for name, secret in SECRETS.items() if secret.encode() in data}


@contextmanager
def origin() -> Iterator[Origin]:
    """A web server with media, in a thread."""
    png = io.BytesIO()
    picture(56, 56, seed=1).save(png, "PNG")
    routes = {
        "/picture": content(png.getvalue(), Content_Type="image/png"),
        "/moved": redirect(f"/picture?again&{SIGNED}"),
        "/away": redirect(f"http://elsewhere.example/?{SIGNED}"),
        "/broken": reset,
        "/noise": content(b"no picture at all"),
    }
    started, stop = threading.Event(), threading.Event()
    served: list[Origin] = []

    async def run() -> None:
        async with serving_origin(routes) as one:
            served.append(one)
            started.set()
            while not stop.is_set():
                await asyncio.sleep(0.02)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield served[0]
    finally:
        stop.set()
        thread.join(10)


@dataclass
class Run:
    """A server whose secrets are all known, and where they might have gone."""

    server: Server
    answers: list[bytes] = field(default_factory=list)

    def say(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own; the answer is kept."""
        with wire(self.server.base_url) as client:
            client.send(data)
            client.finish_sending()
            self.answers.append(client.rest())
        return self.answers[-1]

    def get(self, path: str, *headers: str, method: str = "GET") -> bytes:
        lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *headers]
        return self.say("\r\n".join([*lines, "", ""]).encode())

    def look(self, url: str, key: str) -> bytes:
        """Ask about the picture at a URL."""
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        body = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": parts}]}
        return self.say(post("/v1/chat/completions", body, f"Authorization: Bearer {key}"))


def put_secrets_in_odd_places(run: Run, key: str, other: str) -> None:
    """`key` lets in, `other` is another tenant's; each goes where no key belongs."""
    bearer = f"Authorization: Bearer {key}"
    for secret in (key, other):
        run.get(f"/v1/models?api_key={secret}")
        run.get("/v1/models", f"X-Api-Key: {secret}", f"Cookie: key={secret}")
        run.get("/v1/models", f"Authorization: Basic {secret}")
        run.get("/v1/models", f"Authorization: {secret}")
        run.get("/v1/models", f"Authorization: Bearer {secret} {secret}")
        run.get(f"/v1/models/{secret}?key={secret}", bearer, f"Referer: http://x/{secret}")
        run.get(f"/{secret}", bearer, f"X-Request-Id: {secret}")
        run.get(f"/v1/completions/{secret}%0aforged%1b[31m", bearer)
        run.get(f"/v1/models%3Fkey={secret}", bearer)
        run.get("/v1/completions", bearer, f"X-Request-Id: {secret}", method="DELETE")
        run.get("/livez", f"Origin: http://{secret}", method="OPTIONS")
        run.say(f"{secret} / HTTP/1.1\r\n\r\n".encode())
        run.say(f"GET / HTTP/1.1\r\n{secret}\r\n\r\n".encode())
        for fields in (
            {secret: 1},
            {"model": secret},
            {"prompt": {secret: 1}},
            {"logit_bias": {secret: 1}},
            {"chat_template_kwargs": {secret: 1}},
            {"tools": [{secret: 1}]},
            {"response_format": {"type": secret}},
            {"priority": secret},
        ):
            run.say(post("/v1/completions", completion(**fields), bearer))
            body = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user"}], **fields}
            run.say(post("/v1/chat/completions", body, bearer))
        role = {"model": "tiny", "messages": [{"role": secret, secret: 1, "content": "x"}]}
        run.say(post("/v1/chat/completions", role, bearer))
        for broken in (f'{{"model": "{secret}', f'"{secret}"', f"[{secret}]"):
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n{bearer}\r\nConnection: close\r\n"
            kind = f"Content-Type: application/json\r\nContent-Length: {len(broken)}\r\n\r\n"
            run.say((head + kind + broken).encode())
        typed = f"Content-Type: text/{secret}\r\nContent-Length: 2\r\n\r\n{{}}"
        run.say(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n{bearer}\r\n{typed}".encode())


def show_signed_urls(run: Run, key: str, port: int) -> None:
    host = f"127.0.0.1:{port}"
    assert b"200 OK" in run.look(f"http://{host}/picture?{SIGNED}", key)
    assert b"200 OK" in run.look(f"http://{host}/moved?{SIGNED}", key)
    for url in (
        f"http://{host}/{BY['signature']}",
        f"http://{host}/away?{SIGNED}",
        f"http://{host}/broken?{SIGNED}",
        f"http://{host}/noise?{SIGNED}",
        f"https://{host}/picture?{SIGNED}",
        f"http://elsewhere.example/?{SIGNED}",
        f"http://me:{BY['userinfo']}@{host}/picture",
        f"ftp://{host}/?{SIGNED}",
        f"data:image/png;base64,{BY['signature']}",
        f"file:///{BY['signature']}",
        f"http://{host}/\n{SIGNED}",
    ):
        assert b"200 OK" not in run.look(url, key)


def children(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)


@pytest.fixture
def told(checkpoint: Callable[[str], Path], tmp_path: Path) -> list[str]:
    """A command line that gives keys in every way there is."""
    recipes = tmp_path / "mine" / "recipe"
    recipes.mkdir(parents=True)
    (recipes / "own.yaml").write_text(RECIPE)
    file = tmp_path / "keys"
    file.write_text(f"# for tests\n\n{BY['file']}\n")
    return [
        f"--config-dir={tmp_path / 'mine'}",
        "recipe=own",
        f"model.path={checkpoint('qwen2_vl')}",
        "model.name=tiny",
        "model.max_len=1024",
        f"cache.folder={tmp_path / 'cache'}",
        f"server.api_keys=[{BY['argument']},'${{oc.env:SERVER_KEY}}']",
        f"server.api_keys_file={file}",
        "media.allow_private=true",
        "media.redirects=allowed_domains",
        "media.allowed_domains=['127.0.0.1:*']",
        "engine.threads=1",
    ]


def printed(told: list[str], *flags: str, environment: Mapping[str, str]) -> str:
    command = [sys.executable, "-m", "appliance", *told, *flags]
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )
    return ran.stdout + ran.stderr


def test_no_secret_is_in_anything_that_a_run_writes(told: list[str], tmp_path: Path) -> None:
    more = ["logging.format=json", "logging.level=debug", "server.unknown_fields=warn"]
    with origin() as web, serving(*told, *more, environment=ENVIRONMENT) as server:
        run = Run(server)
        for name in KEYS:  # each of them works, however it was given
            assert b"200 OK" in run.get("/v1/models", f"Authorization: Bearer {BY[name]}")
        put_secrets_in_odd_places(run, BY["argument"], BY["team"])
        put_secrets_in_odd_places(run, BY["file"], TOKEN)
        show_signed_urls(run, BY["environment"], web.port)
        assert {BY["signature"] in call.target for call in web.calls} == {True}
        for path in ("/metrics", "/version", "/v1/models", "/livez"):
            run.get(path, f"Authorization: Bearer {BY['recipe']}")
        assert found(Path(f"/proc/{server.process.pid}/cmdline").read_bytes()) == set()
        assert len(children(server)) >= 3
        for child in children(server):
            for about in ("cmdline", "environ"):
                assert found(Path(f"/proc/{child.pid}/{about}").read_bytes()) == set(), child
        for child in children(server):
            child.kill()
        assert until(lambda: server.process.poll() is not None)
    assert "the engine has stopped" in server.output
    assert "given on the command line" in server.output
    assert len(run.answers) > 100
    assert [answer for answer in run.answers if found(answer)] == []
    assert [line for line in server.lines if found(line)] == []
    log = [json.loads(line) for line in server.lines if not line.startswith("  ")]  # the summary
    assert sum(line["message"] == "request" for line in log) > 100
    assert any(line["message"].startswith("media worker: ") for line in log)
    for file in (tmp_path / "cache").rglob("*"):
        assert not file.is_file() or found(file.read_bytes()) == set()


@pytest.mark.parametrize(
    "flags",
    [
        ["--cfg", "job"],
        ["--cfg", "job", "--resolve"],
        ["--cfg", "job", "--package", "server"],
        ["--cfg", "all", "--resolve"],
        ["--cfg", "hydra"],
        ["--help"],
        ["--info", "all"],
        ["task=plan"],
        ["server.port=many"],
        ["server.api_keys=[" + BY["userinfo"]],
        ["media.proxy=http://me:" + BY["userinfo"] + "@proxy:1"],
    ],
    ids=" ".join,
)
def test_no_secret_is_in_what_is_printed_of_a_recipe(told: list[str], flags: list[str]) -> None:
    text = printed(told, *flags, environment=ENVIRONMENT)
    assert len(text.splitlines()) >= 1
    assert "Traceback" not in text
    assert found(text) == set()
    if "--cfg" in flags and "hydra" not in flags:
        assert hashlib.sha256(BY["argument"].encode()).hexdigest() in text
        assert hashlib.sha256(BY["recipe"].encode()).hexdigest() in text
        resolved = hashlib.sha256(BY["environment"].encode()).hexdigest() in text
        assert resolved == ("--resolve" in flags) != ("${oc.env:SERVER_KEY}" in text)


def test_what_looks_for_secrets_finds_them() -> None:
    for name, secret in SECRETS.items():
        assert found(f"before{secret}after") == found(f'{{"a": "{secret}"}}'.encode()) == {name}
    assert found("sk-argument-") == set()


def test_without_overwriting_a_key_would_be_in_the_command_line() -> None:
    """What the test above reads does show arguments."""
    code = "import sys; print(open('/proc/self/cmdline').read())"
    ran = subprocess.run(
        [sys.executable, "-c", code, f"server.api_keys=[{BY['argument']}]"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found(ran.stdout) == {"argument"}
