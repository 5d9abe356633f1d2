"""How far the engine's step loop is from what the machine could do: decode and prefill, in-process.

    python -m bench.step --checkpoint FOLDER [--profile]

The floor of a step is the larger of two times: reading the weights and the key-value cache once at
the measured memory bandwidth, and the step's multiplications at the measured matmul rate.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from appliance.config.schema import NATIVE
from bench.workload import Prompts, Workload
from engine.core import Engine
from engine.device.process_setup import keep_memory
from engine.memory.checkpoint import Checkpoint, read_checkpoint
from engine.memory.plan import plan, resolve_dtype
from engine.memory.quantization import table_itemsize, tied_head_bytes, weights_bytes
from engine.native.choice import computes
from engine.options import EngineOptions
from engine.request import Request, SamplingOptions

PAGE_SIZE = 16


@dataclass(slots=True, frozen=True)
class Machine:
    """Measured limits, with the engine's threads and dtype."""

    bandwidth: float  # bytes a second, reading
    matmul_rate: float  # floating-point operations a second


@dataclass(slots=True, frozen=True)
class Floor:
    """Least seconds that a step can take, and which limit sets them."""

    seconds: float
    limit: str


@dataclass(slots=True, frozen=True)
class Row:
    """One line of the result."""

    phase: str
    sequences: int
    tokens: int  # computed by all steps together
    seconds: float
    steps: int
    floor: Floor  # of all steps together
    parts: dict[str, float]  # shares of the time; empty where torch's operators compute


def best_seconds(work: Callable[[], object], rounds: int = 5) -> float:
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_machine(dtype: torch.dtype) -> Machine:
    """Bandwidth by a matrix-vector product too large for the caches, rate by square products."""
    matrix, vector = torch.ones(16384, 8192), torch.ones(8192)
    bandwidth = matrix.nbytes / best_seconds(lambda: torch.mv(matrix, vector))
    side = 1536
    left, right = torch.rand(side, side).to(dtype), torch.rand(side, side).to(dtype)
    rate = 2 * side**3 / best_seconds(lambda: torch.mm(left, right))
    return Machine(bandwidth, rate)


class StepBench:
    """One engine, fed batches of prompts of one length."""

    def __init__(self, options: argparse.Namespace) -> None:
        folder: Path = options.checkpoint
        self.checkpoint: Checkpoint = read_checkpoint(folder)
        ours = computes(options.native, fuse=not options.no_fuse, ranks=1)
        dtype = resolve_dtype(options.dtype, folder, "cpu", ours=ours)
        batches: list[int] = options.batch
        self.prompt_tokens: int = options.prompt_tokens
        self.decode_steps: int = options.steps
        max_len = self.prompt_tokens + self.decode_steps + PAGE_SIZE
        torch.set_num_threads(options.threads)
        self.dtype = dtype
        planned = plan(
            EngineOptions(
                model_path=str(folder),
                dtype=dtype,
                device="cpu",
                threads=options.threads,
                page_size=PAGE_SIZE,
                pages=0,
                max_len=max_len,
                max_tokens_per_step=options.max_tokens_per_step,
                max_sequences=max(batches),
                prefix_cache=False,
                encoder_cache_bytes=0,
                fuse=not options.no_fuse,
                native=options.native,
                quantization=options.quantization,
            )
        )
        self.weights = planned.fewer_bits or "whole"
        self.read_bytes = self._read_bytes(planned.options)
        self.kv_bytes_per_token = planned.kv_bytes_per_token
        self.machine = measure_machine(getattr(torch, dtype))
        self.engine = Engine(planned.resolved)
        keep_memory()  # as the engine process does: else a step's page faults are measured
        self.prompts = Prompts(folder, Workload(self.prompt_tokens, self.decode_steps))
        self._draws = 0

    def run(self, sequences: int, profiled: bool) -> list[Row]:
        """Prefill `sequences` prompts and decode them together; with a table of operators."""
        self._warm_up(sequences)
        self._parts(1.0)
        start, steps = time.perf_counter(), self._prefill(sequences, self.decode_steps)
        prefill = time.perf_counter() - start
        prefill_parts = self._parts(prefill)
        if profiled:
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                times, parts = self._decode()
            print(f"\nDecode of {sequences}, {len(times)} steps (profiling slows them):")
            print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))
        else:
            times, parts = self._decode()
        rows = [
            Row(
                "prefill",
                sequences,
                sequences * self.prompt_tokens,
                prefill,
                steps,
                self._prefill_floor(sequences, steps),
                prefill_parts,
            )
        ]
        if times:
            middle = statistics.median(times) * len(times)
            tokens = sequences * len(times)
            rows.append(
                Row(
                    "decode",
                    sequences,
                    tokens,
                    middle,
                    len(times),
                    self._decode_floor(sequences, len(times)),
                    parts,
                )
            )
        return rows

    def _parts(self, seconds: float) -> dict[str, float]:
        """Shares of the time since the last call, by our kernels' own clock; the rest is Python."""
        machine = getattr(self.engine._platform, "machine", None)
        if machine is None:
            return {}
        parts: dict[str, float] = machine.seconds()
        parts["the rest"] = seconds - sum(parts.values())
        return {name: part / seconds for name, part in parts.items()}

    def _warm_up(self, sequences: int) -> None:
        self._prefill(sequences, 4)
        self._decode()

    def _prefill(self, sequences: int, max_tokens: int) -> int:
        """Add prompts and step until each has its first token; the number of steps."""
        options = SamplingOptions(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        self._draws += 1
        for index, ids in enumerate(self.prompts.token_ids(f"step{self._draws}", sequences)):
            self.engine.add(Request(f"{self._draws}-{index}", ids, options))
        begun: set[str] = set()
        steps = 0
        while len(begun) < sequences:
            begun |= {output.request_id for output in self.engine.step()}
            steps += 1
        return steps

    def _decode(self) -> tuple[list[float], dict[str, float]]:
        """Step to the end; seconds and parts of the steps in which every sequence still decoded."""
        times: list[float] = []
        parts: dict[str, float] = {}
        ended = False
        while self.engine.has_work():
            start = time.perf_counter()
            outputs = self.engine.step()
            if not ended:
                times.append(time.perf_counter() - start)
            if not ended and any(output.finish_reason for output in outputs):
                ended, parts = True, self._parts(sum(times))
        return times, parts

    def _floor(self, read_bytes: float, operations: float) -> Floor:
        reading = read_bytes / self.machine.bandwidth
        computing = operations / self.machine.matmul_rate
        return Floor(reading, "memory") if reading >= computing else Floor(computing, "matmul")

    def _matmul_parameters(self) -> int:
        """Parameters that are multiplied, the head's included: a tied table counts as the head."""
        model = self.checkpoint
        return model.decoder_parameters - (0 if model.tied else model.embedding_parameters)

    def _read_bytes(self, options: EngineOptions) -> int:
        """Bytes of what is multiplied: the head's too, but no table that is only looked up."""
        model = self.checkpoint
        table = int(model.embedding_parameters * table_itemsize(options, model))
        return weights_bytes(options, model, 0) - table + tied_head_bytes(options, model)

    def _attention_operations(self, query_key_pairs: float) -> float:
        model = self.checkpoint
        return 4.0 * query_key_pairs * model.heads * model.head_dim * model.layers

    def _decode_floor(self, sequences: int, steps: int) -> Floor:
        weights = self._matmul_parameters()
        context = self.prompt_tokens + steps / 2
        cache = sequences * context * self.kv_bytes_per_token
        attention = self._attention_operations(sequences * context)
        return self._floor(
            steps * (self.read_bytes + cache),
            steps * (2.0 * weights * sequences + attention),
        )

    def _prefill_floor(self, sequences: int, steps: int) -> Floor:
        """The head is needed for the last token of each prompt only."""
        weights, head = self._matmul_parameters(), self.checkpoint.embedding_parameters
        tokens = sequences * self.prompt_tokens
        pairs = sequences * self.prompt_tokens * (self.prompt_tokens + 1) / 2
        operations = 2.0 * ((weights - head) * tokens + head * sequences)
        return self._floor(
            float(steps) * self.read_bytes, operations + self._attention_operations(pairs)
        )


def table(rows: list[Row]) -> str:
    lines = [
        "| phase | sequences | ms/step | tok/s | floor, ms/step | limit | times the floor |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for row in rows:
        cells = [
            row.phase,
            str(row.sequences),
            f"{1e3 * row.seconds / row.steps:.1f}",
            f"{row.tokens / row.seconds:.0f}",
            f"{1e3 * row.floor.seconds / row.steps:.1f}",
            row.floor.limit,
            f"{row.seconds / row.floor.seconds:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parts_table(rows: list[Row]) -> str:
    """Where the milliseconds of a step go: kernels by their kind, and what Python does."""
    names = list(rows[0].parts)
    heads = ["phase", "sequences", *names]
    lines = [
        f"| {' | '.join(heads)} |",
        f"| --- | {' | '.join('---:' for _ in heads[1:])} |",
    ]
    for row in rows:
        times = [1e3 * row.seconds / row.steps * share for share in row.parts.values()]
        cells = [row.phase, str(row.sequences), *(f"{each:.2f}" for each in times)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.step", description=__doc__.splitlines()[0] if __doc__ else None
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder with config.json and safetensors")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    add("--batch", type=int, nargs="+", default=[1, 8, 32], help="sequences at once")
    add("--prompt-tokens", type=int, default=256)
    add("--steps", type=int, default=64, help="tokens decoded for each sequence (default: 64)")
    add("--max-tokens-per-step", type=int, default=1024)
    add("--native", default="auto", choices=NATIVE, help="kernels, as engine.native has them")
    add("--quantization", choices=["int8", "int4"], help="as model.quantization has it")
    add("--no-fuse", action="store_true", help="the checkpoint's layers as they are")
    add("--profile", action="store_true", help="print the operators of each decode run")
    options = parser.parse_args(argv)
    if options.steps < 4:
        parser.error("--steps must be at least 4")
    bench = StepBench(options)
    print(
        f"{bench.checkpoint.architecture} {bench.dtype}, {bench.weights}, "
        f"{options.threads} threads: memory "
        f"{bench.machine.bandwidth / 1e9:.1f} GB/s, matmul {bench.machine.matmul_rate / 1e9:.0f} "
        f"GFLOP/s, load before {os.getloadavg()[0]:.2f}; prompts of {bench.prompt_tokens}"
    )
    rows = [row for batch in options.batch for row in bench.run(batch, options.profile)]
    print(table(rows))
    if rows[0].parts:
        print(f"\nMilliseconds of a step:\n\n{parts_table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
