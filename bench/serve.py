"""Serving speed of the appliance beside a public peer: same checkpoint, same requests, in turn.

    python -m bench.peer make --venv PEER_VENV
    python -m bench.serve --peer vllm --peer-venv PEER_VENV --checkpoint FOLDER

Prints ready time, memory, output rate, time to first token (TTFT) and time per token (TPOT) at each
concurrency, with the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import signal
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.load import LevelResult, LoadError, request, run_level
from bench.report import BARS, Report, misses, table
from bench.server_process import ServerCommand, ServerProcess, free_port, machine
from bench.workload import Prompts, Workload

WARM_UP_TOKENS = 16


@dataclass(slots=True, frozen=True)
class Settings:
    """What both servers are given."""

    checkpoint: Path
    levels: list[int]
    requests: int | None
    max_len: int
    kv_gb: int
    start_timeout: float

    def requests_at(self, concurrency: int) -> int:
        return self.requests or max(8, 3 * concurrency)


def our_command(settings: Settings, recipe: str, overrides: list[str]) -> ServerCommand:
    port = free_port()
    arguments = [sys.executable, "-m", "appliance", *([f"recipe={recipe}"] if recipe else [])]
    arguments += [f"model.path={settings.checkpoint}", f"server.port={port}"]
    arguments += [f"model.max_len={settings.max_len}", f"engine.kv_cache_gb={settings.kv_gb}"]
    return ServerCommand("appliance", arguments + overrides, "/readyz", port)


def vllm_command(settings: Settings, venv: Path, dtype: str, extra: list[str]) -> ServerCommand:
    """`extra` are NAME=VALUE environment variables or --options of `vllm serve`."""
    port = free_port()
    program = venv / "bin" / "vllm"
    if not program.exists():
        raise SystemExit(f"{program}: not there; make it with: python -m bench.peer make --venv")
    arguments = [str(program), "serve", str(settings.checkpoint), "--host", "127.0.0.1"]
    arguments += ["--port", str(port), "--dtype", dtype, "--max-model-len", str(settings.max_len)]
    arguments += [argument for argument in extra if argument.startswith("--")]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_gb),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    given = [argument.partition("=") for argument in extra if not argument.startswith("--")]
    environment |= {name: value for name, _, value in given}
    return ServerCommand(f"vllm {dtype}", arguments, "/health", port, environment)


async def measure(
    command: ServerCommand, settings: Settings, prompts: Prompts, log: Path
) -> Report:
    """Start a server, warm it up, run all levels, end it."""
    with ServerProcess(command, log) as server:
        begun = time.perf_counter()
        ready = await server.wait_ready(settings.start_timeout)
        ready_cpu = server.cpu_seconds()
        listing = json.loads(await request(server.host, command.port, "GET", "/v1/models"))
        model = listing["data"][0]["id"]
        await run_level(server.host, command.port, prompts.calls(model, "first", 1, 1), 1)
        first_answer = time.perf_counter() - begun
        memory_ready = server.weigh()
        print(f"{command.name}: ready after {ready:.1f} s", file=sys.stderr, flush=True)
        widest = max(settings.levels)
        warm = prompts.calls(model, "warm", widest, WARM_UP_TOKENS)
        await run_level(server.host, command.port, warm, widest)
        levels: list[LevelResult] = []
        level_cpu: list[float] = []
        for concurrency in settings.levels:
            calls = prompts.calls(model, f"level{concurrency}", settings.requests_at(concurrency))
            cpu = server.cpu_seconds()
            level = await run_level(server.host, command.port, calls, concurrency)
            level_cpu.append(server.cpu_seconds() - cpu)
            server.weigh()
            levels.append(level)
            print(
                f"{command.name}: concurrency {concurrency}: {level.output_rate:.1f} tok/s",
                file=sys.stderr,
                flush=True,
            )
        return Report(
            name=command.name,
            arguments=command.arguments,
            environment=command.environment,
            ready_seconds=ready,
            first_answer_seconds=first_answer,
            memory_ready=memory_ready,
            memory_peak=server.peak_bytes,
            ready_cpu_seconds=ready_cpu,
            levels=levels,
            level_cpu_seconds=level_cpu,
        )


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serve", description=__doc__.splitlines()[0] if __doc__ else None
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder with config.json and safetensors")
    add("--peer", choices=["vllm"], help="measure this peer too")
    add("--peer-venv", type=Path, help="its environment, made by `python -m bench.peer make`")
    add("--only", choices=["ours", "peer"], help="measure one side only")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of the peer")
    add("--recipe", default="smollm2", help="recipe of ours (default: %(default)s)")
    add("--concurrency", type=int, nargs="+", default=[1, 8, 32], help="default: 1 8 32")
    add("--requests", type=int, help="per level; default: 3 per concurrent client, at least 8")
    add("--prompt-tokens", type=int, default=256)
    add("--output-tokens", type=int, default=64)
    add("--shared-tokens", type=int, default=0, help="beginning that all prompts share")
    add("--endpoint", choices=["completions", "chat"], default="completions")
    add("--image-side", type=int, default=0, help="pixels of a square picture in each chat")
    add("--same-image", action="store_true", help="one picture for all, not a new one for each")
    add("--max-len", type=int, default=2048, help="context length given to both")
    add("--kv-gb", type=int, default=2, help="KV cache in GiB given to both")
    add("--start-timeout", type=float, default=900.0, help="seconds a server may take to start")
    add("--log-dir", type=Path, default=Path("."), help="where server logs go (bench-*.log)")
    add("--json", type=Path, help="write all figures there")
    add("--markdown", type=Path, help="write the table there")
    add(
        "--check",
        action="store_true",
        help="exit 1 unless ours reaches "
        + ", ".join(f"{bar.what} {bar.sign} {bar.value}" for bar in BARS),
    )
    add("--ours", metavar="KEY=VALUE", action="append", default=[], help="override given to ours")
    add(
        "--peer-extra",
        metavar="ARG",
        action="append",
        default=[],
        help="environment NAME=VALUE or --option=value given to the peer",
    )
    options = parser.parse_args(argv)
    if options.shared_tokens >= options.prompt_tokens:
        parser.error("--shared-tokens must be below --prompt-tokens")
    if options.prompt_tokens + options.output_tokens > options.max_len:
        parser.error("--prompt-tokens and --output-tokens do not fit --max-len")
    if options.image_side and options.endpoint != "chat":
        parser.error("--image-side is of --endpoint chat")
    if options.same_image and not options.image_side:
        parser.error("--same-image needs --image-side")
    if (options.peer or options.only == "peer") and options.peer_venv is None:
        parser.error("a peer needs --peer-venv")
    if options.only == "peer" and options.peer is None:
        parser.error("--only peer needs --peer")
    if options.check and (options.only or not options.peer):
        parser.error("--check compares both sides: give --peer and no --only")
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    settings = Settings(
        checkpoint=options.checkpoint.resolve(),
        levels=options.concurrency,
        requests=options.requests,
        max_len=options.max_len,
        kv_gb=options.kv_gb,
        start_timeout=options.start_timeout,
    )
    workload = Workload(
        options.prompt_tokens,
        options.output_tokens,
        options.shared_tokens,
        options.endpoint,
        image_side=options.image_side,
        same_image=options.same_image,
    )
    prompts = Prompts(settings.checkpoint, workload)
    commands: list[ServerCommand] = []
    if options.only != "peer":
        commands.append(our_command(settings, options.recipe, options.ours))
    if options.peer and options.only != "ours":
        commands.append(
            vllm_command(settings, options.peer_venv, options.dtype, options.peer_extra)
        )
    host = machine()
    reports = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended then, too
    try:
        for command in commands:
            log = options.log_dir / f"bench-{command.name.replace(' ', '-')}.log"
            reports.append(asyncio.run(measure(command, settings, prompts, log)))
    except LoadError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    shown = table(reports, workload, host)
    print(shown)
    if options.markdown:
        options.markdown.write_text(shown + "\n")
    if options.json:
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        figures: dict[str, Any] = {
            "at": stamp,
            "machine": host,
            "workload": dataclasses.asdict(workload),
        }
        figures |= {"servers": [report.figures() for report in reports]}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    failed = misses(reports[0], reports[1]) if options.check else []
    for line in failed:
        print(f"missed: {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
