"""Pictures and videos from their URLs to tensors, against what the machine and others can do.

    python -m bench.media --checkpoint FOLDER [--only images videos endpoint]

FOLDER is a Qwen2-VL checkpoint; of a tiny one (`python -m tests.checkpoints qwen2_vl FOLDER`) the
intake measures the same, since no weights take part in it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import multiprocessing
import shutil
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from appliance.config.compose import compose
from appliance.media.assembly import intake_for
from appliance.media.source import Source
from appliance.metrics import Metrics
from bench.media_peers import Rate, bare_images, bare_videos, clip, peer_rate, processor_images
from bench.server_process import ServerCommand, ServerProcess, free_port, machine
from engine.models.family import Family
from engine.models.registry import family_for

VIDEO_SIZE, VIDEO_SECONDS = (1280, 720), 10
PIXELS = 28 * 28 * 1280  # what transformers' processor keeps of a picture unless told otherwise


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    host = machine()
    results: dict[str, Any] = {"machine": host}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = resized(options.checkpoint, Path(folder) / "checkpoint", options.max_pixels)
        if "images" in options.only:
            results["images"] = images(checkpoint, options)
        if "videos" in options.only:
            results["videos"] = videos(checkpoint, options)
        if "endpoint" in options.only:
            results["endpoint"] = endpoint(checkpoint, options)
    print(f"{host['cores']} cores of {host['cpu']}, load before: {host['load_before']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def images(checkpoint: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rates of ours and of the peers for distinct pictures, by data: URL and over HTTP."""
    files = [photo(number, *options.size) for number in range(options.count)]
    family, workers = family_for(checkpoint), options.workers
    size = family.image_size(*options.size)  # type: ignore[attr-defined]
    with served(files) as address:
        remote = [f"{address}/{number}" for number in range(len(files))]
        inline = [data_url("image/jpeg", file) for file in files]
        runs: list[Callable[[], Rate]] = [
            lambda: peer_rate("Pillow alone", bare_images, size, files, workers),
            lambda: peer_rate("transformers", processor_images, str(checkpoint), files, workers),
            lambda: ours("ours, data:", "image", inline, family, workers),
            lambda: ours("ours, http:", "image", remote, family, workers),
        ]
        rates = best(options.repeat, runs)
    kilobytes = statistics.mean(map(len, files)) / 1e3
    print(f"\nJPEG of {options.size[0]} x {options.size[1]}, {kilobytes:.0f} kB, kept at {size}\n")
    return table(rates, peers=2)


def videos(checkpoint: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The same for one clip, made new each time by a number behind its end."""
    family, workers = family_for(checkpoint), options.workers
    with tempfile.TemporaryDirectory() as folder:
        data = clip(Path(folder) / "clip.mp4", *VIDEO_SIZE, VIDEO_SECONDS)
    files = [data + struct.pack(">I4sQ", 16, b"free", n) for n in range(options.count // 6)]
    urls = [data_url("video/mp4", file) for file in files]
    runs: list[Callable[[], Rate]] = [
        lambda: peer_rate("PyAV and Pillow alone", bare_videos, str(checkpoint), files, workers),
        lambda: ours("ours, data:", "video", urls, family, workers),
    ]
    rates = best(options.repeat, runs)
    print(f"\nVideo of {VIDEO_SECONDS} s, {VIDEO_SIZE[0]} x {VIDEO_SIZE[1]}, 30 frames a second\n")
    return table(rates, peers=1)


def endpoint(checkpoint: Path, options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of a question about a new picture, and about one that was asked about before."""
    port = free_port()
    told = ["recipe=qwen2_vl", f"model.path={checkpoint}", "model.name=m", "model.max_len=4096"]
    command = ServerCommand(
        "ours",
        [sys.executable, "-m", "appliance", *told, f"server.port={port}", "logging.level=error"],
        "/readyz",
        port,
    )
    log = Path(tempfile.mkstemp(prefix="bench-media-", suffix=".log")[1])
    with ServerProcess(command, log) as server:
        asyncio.run(server.wait_ready(300))
        ask = Asker(port)
        for number in range(3):  # whatever is made at first use
            ask(photo(1000 + number, *options.size))
        files = [photo(number, *options.size) for number in range(options.asked)]
        new = [ask(file) for file in files]
        repeated = [ask(file) for _ in range(3) for file in files[-5:]]
    figures = {
        "new": statistics.median(new) * 1e3,
        "repeated": statistics.median(repeated) * 1e3,
    }
    ratio = figures["new"] / figures["repeated"]
    print("\n| through the endpoint, one token out | ms |\n| --- | --- |")
    for name, value in figures.items():
        print(f"| {name} picture | {value:.1f} |")
    print(f"| times cheaper | {ratio:.1f} |")
    return figures | {"ratio": ratio}


class Asker:
    """One client that asks one question after the other."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port)

    def __call__(self, file: bytes) -> float:
        """Seconds from sending a question to the end of its answer."""
        part = {"type": "image_url", "image_url": {"url": data_url("image/jpeg", file)}}
        messages = [{"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]}]
        body = json.dumps({"model": "m", "max_tokens": 1, "messages": messages}).encode()
        begun = time.perf_counter()
        self._connection.request(
            "POST", "/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {text[:300]!r}")
        return time.perf_counter() - begun


def ours(name: str, kind: str, urls: Sequence[str], family: Family, workers: int) -> Rate:
    """Every URL a request of its own, two for each worker at a time, nothing kept."""
    told = [
        "recipe=qwen2_vl",
        f"model.path={family.folder}",
        f"media.workers={workers}",
        "media.allowed_domains=['127.0.0.1:*']",
        "media.allow_private=true",
        "cache.media_gb=0",
    ]
    config = compose(told).config

    async def run() -> Rate:
        with ThreadPoolExecutor(2) as threads:
            intake = intake_for(config, family, threads, Metrics())
            await intake.start()
            waiting = iter(urls)

            async def client() -> None:
                for url in waiting:
                    source = Source(kind, url, "part", "url")
                    async with intake.take([source], b"") as items:
                        await intake.load(items, b"", [0])

            try:
                begun, cpu = time.perf_counter(), cpu_seconds()
                await asyncio.gather(*[client() for _ in range(2 * workers)])
                return Rate(name, len(urls), time.perf_counter() - begun, cpu_seconds() - cpu)
            finally:
                await intake.close()

    return asyncio.run(run())


def best(repeat: int, runs: Sequence[Callable[[], Rate]]) -> list[Rate]:
    """The quickest of some runs of each, taken in turns: what else ran meanwhile only adds."""
    rounds = [[run() for run in runs] for _ in range(repeat)]
    return [max(rates, key=lambda rate: rate.per_second) for rates in zip(*rounds, strict=True)]


def table(rates: Sequence[Rate], peers: int) -> list[dict[str, Any]]:
    """Prints rates, and how many times those of the peers they are."""
    names = [rate.name for rate in rates[:peers]]
    print("| | items/s | CPU ms/item | " + " | ".join(f"times {one}" for one in names) + " |")
    print("| --- " * (3 + peers) + "|")
    for rate in rates:
        cells = [rate.name, f"{rate.per_second:.1f}", f"{rate.cpu_milliseconds:.1f}"]
        cells += [f"{rate.per_second / peer.per_second:.2f}" for peer in rates[:peers]]
        print("| " + " | ".join(cells) + " |")
    return [
        {"name": rate.name, "per_second": rate.per_second, "cpu_ms": rate.cpu_milliseconds}
        for rate in rates
    ]


def cpu_seconds() -> float:
    """Of this process and its media workers."""
    this = psutil.Process()
    found = [this]
    for child in this.children():
        if any("appliance.media.worker" in word for word in child.cmdline()):
            found += [child, *child.children(recursive=True)]
    times = [one.cpu_times() for one in found]
    return sum(one.user + one.system for one in times)


def photo(number: int, width: int, height: int) -> bytes:
    """A JPEG with the detail of a photograph, no two numbers alike."""
    rng = np.random.default_rng(number)
    picture = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((4, 120), (16, 60), (64, 30), (256, 16)):
        shape = (max(2, cells * height // width), cells, 3)
        coarse = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        picture += strength / 255 * np.asarray(coarse.resize((width, height), Image.BICUBIC))
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def resized(checkpoint: Path, folder: Path, max_pixels: int) -> Path:
    """The checkpoint with another limit of its image processor."""
    shutil.copytree(checkpoint, folder)
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    settings.pop("size", None)
    path.write_text(json.dumps({**settings, "min_pixels": 56 * 56, "max_pixels": max_pixels}))
    return folder


@contextlib.contextmanager
def served(files: Sequence[bytes]) -> Iterator[str]:
    """An origin in a process of its own; its address."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=origin, args=(list(files), theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.kill()
        process.join()


def origin(files: list[bytes], connection: Any) -> None:
    """Answers `/number` with a file, keeping connections alive."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                file = files[int(head.split(b" ", 2)[1][1:])]
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(file) + file)
                await writer.drain()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        connection.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.media", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a Qwen2-VL")
    parser.add_argument("--only", nargs="+", default=["images", "endpoint"], help="what to measure")
    parser.add_argument("--size", type=int, nargs=2, default=(1920, 1080))
    parser.add_argument("--max-pixels", type=int, default=PIXELS, help="kept of a picture")
    parser.add_argument("--count", type=int, default=60, help="pictures of one run")
    parser.add_argument("--repeat", type=int, default=3, help="runs, of which the best counts")
    parser.add_argument("--asked", type=int, default=15, help="pictures at the endpoint")
    parser.add_argument("--workers", type=int, default=2, help="processes of ours and the peers'")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
