"""What a token waits for: until it has reached its client, and while somebody's prompt is computed.

    python -m bench.latency --checkpoint FOLDER [--streams 1 8 32] [--arriving 2048]

So many streams are answered at once through the launcher's server. First alone: how long each token
takes from the end of its step in the engine to the client that reads it. Then beside a long prompt
that arrives: how long the streams wait for their next token, and the prompt for its first.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import selectors
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.load import Call, LoadError, percentile, request
from bench.server_process import ServerCommand, ServerProcess, free_port, machine
from bench.stamped import FILE
from bench.workload import Prompts, Workload

START_SECONDS = 600.0
MOST_TOKENS = 100_000  # of an answer that is left before its end
QUIET = 0.1  # seconds between two arriving prompts


@dataclass(slots=True)
class Stream:
    """One answer as it comes: what was received and when, read only afterwards."""

    sent: float
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    ended: bool = False

    def tokens(self) -> list[tuple[float, list[int]]]:
        """The token ids of each event, and when its last byte was there."""
        whole = b"".join(piece for _, piece in self.pieces)
        head, _, _ = whole.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise LoadError(whole[:300].decode(errors="replace"))
        ends, place = [], 0  # of the pieces
        for moment, piece in self.pieces:
            place += len(piece)
            ends.append((place, moment))
        found, piece, start = [], iter(ends), len(head)
        end, moment = next(piece)
        while (at := whole.find(b"data: {", start)) >= 0:
            start = whole.find(b"\n\n", at)
            if start < 0:
                break
            while end < start + 2:
                end, moment = next(piece)
            event = json.loads(whole[at + 6 : start])
            ids = [token for choice in event["choices"] for token in choice.get("token_ids") or ()]
            if ids:
                found.append((moment, ids))
        return found


class Reader:
    """Streams read by a thread that does nothing else, so that it is there when bytes are."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._over = False
        self._thread.start()

    def open(self, call: Call) -> Stream:
        connection = socket.create_connection(self._address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = (
            f"POST {call.path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(call.body)}\r\n\r\n"
        )
        stream = Stream(time.perf_counter())
        connection.sendall(head.encode() + call.body)
        self._selector.register(connection, selectors.EVENT_READ, stream)
        return stream

    def close(self) -> None:
        """Leave all streams."""
        self._over = True
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def _read(self) -> None:
        while not self._over:
            for key, _ in self._selector.select(0.05):
                assert isinstance(key.fileobj, socket.socket)
                piece = key.fileobj.recv(1 << 16)
                key.data.pieces.append((time.perf_counter(), piece))
                if not piece or b"data: [DONE]" in piece:
                    key.data.ended = True
                    self._selector.unregister(key.fileobj)
                    key.fileobj.close()


@dataclass(slots=True, frozen=True)
class Row:
    """One line of the result; milliseconds."""

    streams: int
    alone: list[float]  # between two tokens of a stream
    beside: list[float]  # the same, while a prompt was on its way to its first token
    first: list[float]  # until the first token of each prompt that arrived
    delays: list[float]  # from the end of a step to the client, while alone
    sending: list[float]  # of a step's outputs, in the engine


def gaps(
    stream: Sequence[tuple[float, list[int]]], spans: Sequence[tuple[float, float]]
) -> list[float]:
    """Milliseconds between events of which any part lies in one of the spans."""
    moments = [moment for moment, _ in stream]
    return [
        1e3 * (later - earlier)
        for earlier, later in itertools.pairwise(moments)
        if any(earlier < end and later > begun for begun, end in spans)
    ]


def delays(
    stream: Sequence[tuple[float, list[int]]],
    steps: dict[str, list[tuple[float, int]]],
    span: tuple[float, float],
) -> list[float]:
    """Milliseconds from the end of a step to the event with its token; only events in the span.

    Raises LoadError where the engine gave no such tokens.
    """
    ids = [token for _, tokens in stream for token in tokens]
    ends = list(itertools.accumulate(len(tokens) for _, tokens in stream))
    least: list[float] | None = None  # of requests that were answered alike
    for given in steps.values():
        if [token for _, token in given[: len(ids)]] != ids:
            continue
        found = [
            1e3 * (moment - given[end - 1][0])
            for (moment, _), end in zip(stream, ends, strict=True)
            if span[0] <= moment <= span[1]
        ]
        if min(found, default=0.0) >= 0 and (least is None or sum(found) < sum(least)):
            least = found
    if least is None:
        raise LoadError("an answer's tokens are none that the engine noted")
    return least


def noted(file: Path) -> tuple[dict[str, list[tuple[float, int]]], list[float]]:
    """When the engine had which token of which request; and seconds of sending each step's."""
    steps: dict[str, list[tuple[float, int]]] = {}
    sending = []
    for line in file.read_text(encoding="utf-8").splitlines():
        known, sent, outputs = json.loads(line)
        sending.append(sent - known)
        for name, tokens in outputs:
            steps.setdefault(name, []).extend((known, token) for token in tokens)
    return steps, sending


@contextmanager
def server(options: argparse.Namespace, stamps: Path) -> Iterator[ServerProcess]:
    port = free_port()
    arguments = [sys.executable, "-m", "bench.stamped", f"recipe={options.recipe}"]
    arguments += [f"model.path={options.checkpoint.resolve()}", f"server.port={port}"]
    arguments += [f"model.max_len={options.max_len}", "cache.prefix=false", *options.ours]
    command = ServerCommand("appliance", arguments, "/readyz", port, {FILE: str(stamps)})
    with ServerProcess(command, stamps.with_suffix(".log")) as process:
        asyncio.run(process.wait_ready(START_SECONDS))
        yield process


def body(call: Call, tokens: int) -> Call:
    """The call with token ids in its events, and no end before so many tokens."""
    told = json.loads(call.body) | {"return_token_ids": True, "max_tokens": tokens}
    return Call(call.path, json.dumps(told).encode())


def measure(process: ServerProcess, options: argparse.Namespace, streams: int, stamps: Path) -> Row:
    """Have so many streams, alone and then beside prompts that arrive one after the other."""
    host, port = process.host, process.command.port
    listing = json.loads(asyncio.run(request(host, port, "GET", "/v1/models")))
    model = listing["data"][0]["id"]
    stamps.write_text("")
    short = Prompts(options.checkpoint, Workload(options.prompt_tokens, 1))
    long = Prompts(options.checkpoint, Workload(options.arriving, 1))
    calls = short.calls(model, f"streams{streams}", streams)
    most = options.max_len - options.prompt_tokens
    reader = Reader(host, port)
    try:
        running = [reader.open(body(call, most)) for call in calls]
        wait_for(running)
        time.sleep(0.5)
        begun = time.perf_counter()
        time.sleep(options.seconds)
        ended = time.perf_counter()
        arriving = []
        for call in long.calls(model, f"arriving{streams}", options.arrivals):
            arriving.append(reader.open(body(call, 1)))
            wait_for(arriving)
            time.sleep(QUIET)
        if any(stream.ended for stream in running):
            raise LoadError("an answer ended before the last prompt had come: raise --max-len")
    finally:
        reader.close()
    time.sleep(QUIET)  # the engine writes a line behind what it has sent
    steps, sending = noted(stamps)
    answers = [stream.tokens() for stream in running]
    firsts = [(stream.sent, stream.tokens()[0][0]) for stream in arriving]
    return Row(
        streams,
        [gap for answer in answers for gap in gaps(answer, [(begun, ended)])],
        [gap for answer in answers for gap in gaps(answer, firsts)],
        [1e3 * (end - sent) for sent, end in firsts],
        [delay for answer in answers for delay in delays(answer, steps, (begun, ended))],
        [1e3 * each for each in sending],
    )


def wait_for(streams: Sequence[Stream]) -> None:
    """Until each has its first event."""
    give_up = time.monotonic() + START_SECONDS
    for stream in streams:
        while b"data: {" not in (come := b"".join(piece for _, piece in list(stream.pieces))):
            if stream.ended:
                raise LoadError(f"refused: {come[:300].decode(errors='replace')}")
            if time.monotonic() > give_up:
                raise LoadError("no first token")
            time.sleep(0.005)


def table(rows: Sequence[Row]) -> str:
    heads = [
        "streams",
        "token, ms",
        "p99",
        "most",
        "beside a prompt: token, ms",
        "p99",
        "most",
        "the prompt's first, ms",
        "step to client, ms",
        "p95",
        "p99",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|{' ---: |' * len(heads)}"]
    for row in rows:
        cells = [str(row.streams)]
        for found in (row.alone, row.beside):
            cells += [f"{statistics.median(found):.1f}", f"{percentile(found, 0.99):.1f}"]
            cells.append(f"{max(found):.1f}")
        cells.append(f"{statistics.median(row.first):.0f}")
        cells += [
            f"{each:.2f}"
            for each in (
                statistics.median(row.delays),
                percentile(row.delays, 0.95),
                percentile(row.delays, 0.99),
            )
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.latency", description=__doc__.splitlines()[0] if __doc__ else None
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder with config.json and safetensors")
    add("--recipe", default="smollm2", help="recipe (default: %(default)s)")
    add("--streams", type=int, nargs="+", default=[1, 8, 32], help="default: 1 8 32")
    add("--prompt-tokens", type=int, default=64, help="of each stream (default: 64)")
    add("--arriving", type=int, default=2048, help="tokens of a prompt that arrives")
    add("--arrivals", type=int, default=3, help="prompts, one after the other (default: 3)")
    add("--seconds", type=float, default=4.0, help="that the streams run alone (default: 4)")
    add("--max-len", type=int, default=4096, help="context length (default: 4096)")
    add("--ours", metavar="KEY=VALUE", action="append", default=[], help="override of the recipe")
    options = parser.parse_args(argv)
    if options.arriving >= options.max_len:
        parser.error("--arriving must be below --max-len")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is ended, too
    host = machine()
    try:
        with tempfile.TemporaryDirectory() as folder:
            stamps = Path(folder) / "stamps"
            stamps.touch()
            with server(options, stamps) as process:
                rows = [measure(process, options, count, stamps) for count in options.streams]
    except (LoadError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(
        f"{options.checkpoint.name}, {host['cpu']}, {host['cores']} cores, load before "
        f"{host['load_before']:.2f}; prompts of {options.arriving} arrive; {' '.join(options.ours)}"
    )
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
