"""The figures of measured servers as one table, and the bars that ours is held to."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from bench.load import LevelResult
from bench.server_process import GIB
from bench.workload import Workload


@dataclass(slots=True, frozen=True)
class Report:
    """Everything measured of one server; seconds and bytes."""

    name: str
    arguments: list[str]
    environment: dict[str, str]
    ready_seconds: float
    first_answer_seconds: float
    memory_ready: int
    memory_peak: int
    ready_cpu_seconds: float
    levels: list[LevelResult]
    level_cpu_seconds: list[float]  # of the server, in each level

    def figures(self) -> dict[str, Any]:
        """For JSON: without the texts, and with the last part of each path only."""
        figures = dataclasses.asdict(self)
        figures["arguments"] = [re.sub(r"(^|=)/.*/", r"\1", each) for each in self.arguments]
        for level in figures["levels"]:
            del level["texts"]
        return figures


@dataclass(slots=True, frozen=True)
class Bar:
    """A ratio ours/peer to reach: at least (`>=`) or at most (`<=`) `value`."""

    what: str
    sign: str
    value: float

    def holds(self, ratio: float) -> bool:
        return ratio >= self.value if self.sign == ">=" else ratio <= self.value


THROUGHPUT = Bar("output rate at each concurrency", ">=", 1.0)
READY = Bar("ready time", "<=", 0.2)
MEMORY = Bar("peak memory", "<=", 0.5)
BARS = (THROUGHPUT, READY, MEMORY)


def misses(ours: Report, peer: Report) -> list[str]:
    """One line for each bar that ours does not reach."""
    ratios = [
        (READY, "", ours.ready_seconds / peer.ready_seconds),
        (MEMORY, "", ours.memory_peak / peer.memory_peak),
    ]
    for mine, other in zip(ours.levels, peer.levels, strict=True):
        name = f" ({mine.concurrency})"
        ratios.append((THROUGHPUT, name, mine.output_rate / other.output_rate))
    return [
        f"{bar.what}{name}: {ratio:.2f} of the peer's, should be {bar.sign} {bar.value}"
        for bar, name, ratio in ratios
        if not bar.holds(ratio)
    ]


def table(reports: list[Report], workload: Workload, host: dict[str, Any]) -> str:
    """A markdown table: one column per server and, for two, the ratio first/second."""
    rows: list[tuple[str, list[float], str]] = [
        ("ready, s", [r.ready_seconds for r in reports], ".1f"),
        ("ready, s of CPU", [r.ready_cpu_seconds for r in reports], ".1f"),
        ("first answer, s", [r.first_answer_seconds for r in reports], ".1f"),
        ("memory when ready, GiB", [r.memory_ready / GIB for r in reports], ".2f"),
        ("memory at most, GiB", [r.memory_peak / GIB for r in reports], ".2f"),
    ]
    for place, level in enumerate(reports[0].levels):
        of = [r.levels[place] for r in reports]
        cpu = [1e3 * r.level_cpu_seconds[place] / r.levels[place].output_tokens for r in reports]
        at = f"at {level.concurrency}: "
        rows += [
            (at + "output, tok/s", [x.output_rate for x in of], ".1f"),
            (at + "TTFT median, ms", [x.ttft_median for x in of], ".0f"),
            (at + "TTFT p95, ms", [x.ttft_p95 for x in of], ".0f"),
            (at + "TPOT median, ms", [x.tpot_median for x in of], ".1f"),
            (at + "TPOT p95, ms", [x.tpot_p95 for x in of], ".1f"),
            (at + "server CPU, ms a token", cpu, ".1f"),
            (at + "client CPU, % of a core", [100 * x.client_cpu for x in of], ".1f"),
        ]
    both = len(reports) == 2
    header = ["", *(r.name for r in reports), *(["ratio"] if both else [])]
    lines = [_line(header), _line(["---"] + ["---:"] * (len(header) - 1))]
    for label, values, form in rows:
        ratio = [f"{values[0] / values[1]:.2f}"] if both else []
        lines.append(_line([label, *(format(value, form) for value in values), *ratio]))
    return "\n".join([*_heading(reports, workload, host), "", *lines])


def _heading(reports: list[Report], workload: Workload, host: dict[str, Any]) -> list[str]:
    counts = ", ".join(f"{x.requests} at {x.concurrency}" for x in reports[0].levels)
    cached = [sum(x.cached_tokens for x in r.levels) for r in reports]
    picture = ""
    if workload.image_side:
        which = "the same" if workload.same_image else "a new"
        picture = f"{which} picture of {workload.image_side}² and "
    lines = [
        f"{picture}{workload.prompt_tokens} tokens in ({workload.shared_tokens} shared), "
        f"{workload.output_tokens} out, {workload.endpoint}, streamed; requests: {counts}.",
        f"{host['cpu']}, {host['cores']} cores ({' '.join(host['instructions'])}), "
        f"{host['memory_gib']} GiB, load before {host['load_before']:.2f}.",
        "Prompt tokens from prefix cache: "
        + ", ".join(f"{r.name} {count}" for r, count in zip(reports, cached, strict=True))
        + ".",
    ]
    if len(reports) == 2:
        pairs = [
            (a, b)
            for mine, other in zip(reports[0].levels, reports[1].levels, strict=True)
            for a, b in zip(mine.texts, other.texts, strict=True)
        ]
        same = sum(a == b for a, b in pairs)
        lines.append(f"Same greedy text: {same} of {len(pairs)} answers.")
    return lines


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
