"""The appliance in a Python script: no server, no port, the same requests and answers.

from appliance.offline import Appliance

with Appliance("smollm2") as model:
    answer = model.chat([{"role": "user", "content": "What is the capital of France?"}])
    print(answer["choices"][0]["message"]["content"])
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import io
import json
import queue
import threading
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, TypeVar

from PIL import Image

from appliance.api.app import create_app
from appliance.config.schema import LimitsConfig
from appliance.errors import ApplianceError
from appliance.loading import Loader
from appliance.recipe import compose_recipe
from appliance.service import Service

Made = TypeVar("Made")
Body = dict[str, Any]


class Appliance:
    """One loaded model. Every call goes through the application that the server runs.

    Raises ConfigurationError for a recipe or override that is wrong, EngineError for a model that
    cannot be loaded, and ApplianceError, with the status and `param` of the endpoint, for a request
    that is refused.
    """

    def __init__(self, recipe: str, *overrides: str, config_dir: str | None = None) -> None:
        folders = [config_dir] if config_dir else []
        composed = compose_recipe([f"recipe={recipe}", *overrides], folders)
        config = composed.config
        # nobody else can reach it
        config.server.api_keys, config.server.tenants = [], {}
        config.server.limits = LimitsConfig(priority=config.server.limits.priority)
        self.model = config.model.name or recipe
        self._service = Service(config, self.model, composed.digest)
        self._application = create_app(self._service)
        self._loader = Loader(composed, in_process=True)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="appliance", daemon=True
        )
        self._thread.start()
        try:
            self._await(self._loader.load(self._service))
        except BaseException:
            self.close()
            raise

    def chat(self, messages: list[Body], **fields: Any) -> Body:
        """A chat completion as the endpoint's JSON body; `fields` are those of its request.

        A part may also be `{"type": "image", "image": PIL.Image}`, or `{"type": "video", "video":
        [PIL.Image, …]}` with frames that are all taken.
        """
        return self._post("/v1/chat/completions", {"messages": with_urls(messages), **fields})

    def stream(self, messages: list[Body], **fields: Any) -> Iterator[Body]:
        """The chunks of a chat completion. Leaving the iteration ends the answer."""
        body = {"messages": with_urls(messages), **fields, "stream": True}
        events: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        gone = asyncio.Event()
        call = self._call("/v1/chat/completions", body, events.put, gone)
        running = asyncio.run_coroutine_threadsafe(call, self._loop)
        running.add_done_callback(lambda _: events.put(None))
        try:
            pending = b""
            while (part := events.get()) is not None:
                *lines, pending = (pending + part).split(b"\n")
                for line in lines:
                    if not line.startswith(b"data: ") or line == b"data: [DONE]":
                        continue
                    chunk = json.loads(line.removeprefix(b"data: "))
                    if "error" in chunk:
                        raise failure(500, chunk)
                    yield chunk
            status, whole = running.result()
            if status != 200:
                raise failure(status, json.loads(whole))
        finally:
            self._loop.call_soon_threadsafe(gone.set)

    def complete(self, prompt: str | list[str] | list[int], **fields: Any) -> Body:
        """A plain completion as the endpoint's JSON body."""
        return self._post("/v1/completions", {"prompt": prompt, **fields})

    def embed(
        self,
        texts: str | list[str] | list[int] | None = None,
        *,
        messages: list[Body] | None = None,
        **fields: Any,
    ) -> Body:
        """Vectors of texts, or the one of a conversation, as the endpoint's JSON body.

        `messages` are as those of `chat`; the recipe needs `embeddings.serve`.
        """
        talk = None if messages is None else with_urls(messages)
        return self._post("/v1/embeddings", {"input": texts, "messages": talk, **fields})

    def close(self) -> None:
        """End what runs and free the model."""
        if not self._thread.is_alive():
            return
        self._await(self._loader.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Appliance:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _await(self, work: Coroutine[Any, Any, Made]) -> Made:
        running: concurrent.futures.Future[Made] = asyncio.run_coroutine_threadsafe(
            work, self._loop
        )
        return running.result()

    def _post(self, path: str, body: Body) -> Body:
        status, answer = self._await(self._call(path, body, lambda part: None, asyncio.Event()))
        decoded: Body = json.loads(answer)
        if status != 200:
            raise failure(status, decoded)
        return decoded

    async def _call(
        self, path: str, body: Body, sink: Any, gone: asyncio.Event
    ) -> tuple[int, bytes]:
        """One request to the application: status and body; `sink` gets every part as it comes."""
        content = json.dumps({"model": self.model, **body}).encode()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(content)).encode()),
            ],
            "client": None,
            "server": None,
        }
        requests = [{"type": "http.request", "body": content, "more_body": False}]
        status, parts = 500, [b""]

        async def receive() -> Any:
            if requests:
                return requests.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                part = message.get("body", b"")
                parts.append(part)
                if status == 200:
                    sink(part)

        await self._application(scope, receive, send)
        return status, b"".join(parts)


def failure(status: int, body: Body) -> ApplianceError:
    """The error of a refused request, as the endpoint words it."""
    error = body["error"]
    return ApplianceError(
        error["message"],
        status=status,
        type=error["type"],
        code=error["code"],
        param=error["param"],
    )


def with_urls(messages: list[Body]) -> list[Body]:
    """Messages whose pictures and frames are PNG data URLs, which lose nothing."""
    return [
        {**message, "content": [_part(part) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def _part(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    picture, frames = part.get("image"), part.get("video")
    if isinstance(picture, Image.Image):
        return {"type": "image_url", "image_url": {"url": _png_url("image", [picture])}}
    if isinstance(frames, list) and all(isinstance(frame, Image.Image) for frame in frames):
        return {"type": "video_url", "video_url": {"url": _png_url("video", frames)}}
    return part


def _png_url(modality: str, pictures: list[Image.Image]) -> str:
    listed = []
    for picture in pictures:
        encoded = io.BytesIO()
        picture.save(encoded, "PNG", compress_level=1)
        listed.append(base64.b64encode(encoded.getvalue()).decode())
    return f"data:{modality}/png;base64,{','.join(listed)}"
