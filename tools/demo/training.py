"""How the demo models are trained: processes that meet once a step, schedule, states to go on from.

The learning rate rises, stays, and falls over the last part of the time. A run goes on from the
newest state in its folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import spawn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tools.demo.muon import Muon

logger = logging.getLogger("training")

STATE = "state.pt"
WARM_UP_STEPS = 60
FALL = 0.75  # of the time, at the end
STEPS_A_LINE = 20
SAVED_EVERY = 300.0  # seconds

# What one step learns, at this progress from 0 to 1: its loss, and figures to print.
Lesson = Callable[[float], tuple[torch.Tensor, dict[str, float]]]
Share = Callable[[float], float]  # of the rate, at this progress


@dataclass(slots=True, frozen=True)
class Run:
    """What one of the processes knows of the run."""

    rank: int
    arguments: argparse.Namespace
    tokenizer: PreTrainedTokenizerBase
    begun: int  # steps of earlier runs
    progress: float = 0.0  # of the time, at the end of earlier runs

    @property
    def examples(self) -> int:
        """Examples a step in this process."""
        return int(self.arguments.batch) // int(self.arguments.processes)

    @property
    def seed(self) -> str:
        """Of this process's data, which no earlier run saw."""
        return f"{self.arguments.seed} {self.begun} {self.rank}"


def parser(about: str | None, batch: int) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, required=True, help="folder of states and result")
    made.add_argument("--minutes", type=float, default=240, help="training time in all")
    made.add_argument("--batch", type=int, default=batch, help="examples a step, of all processes")
    made.add_argument("--rate", type=float, default=3e-3)
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--processes", type=int, default=2, help="of one thread each, on a CPU")
    made.add_argument("--device", default="cpu", help="cpu, or cuda (with --processes 1)")
    made.add_argument("--start", type=Path, help="weights to start from, a written checkpoint")
    return made


def start(
    train: Callable[[Run], None],
    new_tokenizer: Callable[[], PreTrainedTokenizerBase],
    arguments: argparse.Namespace,
) -> None:
    """Run `train` in every process, with the tokenizer of the start or a new one."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    folder = arguments.start or arguments.out
    if not (folder / "tokenizer.json").is_file():
        new_tokenizer().save_pretrained(folder)
    (arguments.out / "meeting").unlink(missing_ok=True)
    spawn(_process, (train, arguments), nprocs=arguments.processes)


def _process(rank: int, train: Callable[[Run], None], arguments: argparse.Namespace) -> None:
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING, format="%(asctime)s %(message)s"
    )
    if arguments.device == "cpu":
        torch.set_num_threads(1)  # processes of one thread bear with busy cores; barriers do not
    torch.manual_seed(arguments.seed)
    with _meeting(rank, arguments):
        folder = arguments.start or arguments.out
        state = arguments.out / STATE
        begun, progress = 0, 0.0
        if state.is_file():
            held = torch.load(state, weights_only=True, mmap=True)
            begun, progress = held["step"], held["spent"] / (arguments.minutes * 60)
        train(Run(rank, arguments, AutoTokenizer.from_pretrained(folder), begun, progress))


@contextmanager
def _meeting(rank: int, arguments: argparse.Namespace) -> Iterator[None]:
    store = dist.FileStore(str(arguments.out / "meeting"), arguments.processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=arguments.processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


def learn(
    run: Run,
    learned: nn.Module,
    lesson: Lesson,
    part: str = "",
    share: Share = lambda progress: 1.0,
) -> dict[str, float]:
    """Take steps until the time is over; return how many, and the minutes, of all runs.

    What has `part` in its name is moved by a share of the rate.
    """
    arguments = run.arguments
    optimizers = _optimizers(learned, arguments.rate, part)
    step, spent = _resumed(run, learned, optimizers)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    millions = sum(value.numel() for value in learned.parameters()) / 1e6
    logger.info("%.2f million parameters, from step %d", millions, step)
    began, saved = time.monotonic() - spent, time.monotonic()
    shown: list[dict[str, float]] = []
    while spent < arguments.minutes * 60:
        progress = spent / (arguments.minutes * 60)
        for group in groups:
            group["lr"] = group["highest"] * _share_of_rate(step, progress)
            if group["is_part"]:
                group["lr"] *= share(progress)
        loss, figures = lesson(progress)
        loss.backward()
        spent = _average_gradients(learned, time.monotonic() - began)
        nn.utils.clip_grad_norm_(learned.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step, shown = step + 1, [*shown, figures]
        if step % STEPS_A_LINE == 0:
            logger.info("step %d, %.1f min: %s", step, spent / 60, _means(shown))
            shown = []
        if time.monotonic() - saved > SAVED_EVERY:
            _save(run, learned, optimizers, step, spent)
            saved = time.monotonic()
    _save(run, learned, optimizers, step, spent)
    about = {"steps": step, "minutes": round(spent / 60, 1), "examples a step": arguments.batch}
    if run.rank == 0:
        (arguments.out / "training.json").write_text(json.dumps(about, indent=2) + "\n")
    return about


def _means(shown: list[dict[str, float]]) -> str:
    """The figures' names, with the means of those that are numbers (no NaN)."""
    parts = []
    for name in dict.fromkeys(name for one in shown for name in one):
        values = [one[name] for one in shown if name in one and one[name] == one[name]]
        parts.append(f"{name} {sum(values) / max(1, len(values)):.3f}")
    return ", ".join(parts)


def _optimizers(learned: nn.Module, rate: float, part: str) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for the rest.

    The first layer of a tower is one of the matrices: AdamW moves each of the 1,176 weights of a
    patch alike, and on a patch of one colour these moves add up.
    """
    sides: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)
    for name, value in learned.named_parameters():
        is_matrix = value.ndim > 1 and "embed_tokens" not in name
        sides[is_matrix, bool(part) and part in name].append(value)
    groups = [
        [
            {"params": values, "is_part": is_part}
            for (of_matrices, is_part), values in sides.items()
            if of_matrices == matrices
        ]
        for matrices in (True, False)
    ]
    made: list[torch.optim.Optimizer] = [
        Muon(groups[0], lr=rate, weight_decay=0.05),
        torch.optim.AdamW(groups[1], lr=rate / 2, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    for optimizer in made:
        for group in optimizer.param_groups:
            group["highest"] = group["lr"]
    return made


def _share_of_rate(step: int, progress: float) -> float:
    rising = min(1.0, (step + 1) / WARM_UP_STEPS)
    falling = min(1.0, max(0.0, (1.0 - progress) / FALL))
    return rising * max(falling, 0.01)


def _average_gradients(learned: nn.Module, spent: float) -> float:
    """Give all processes the mean gradient; return the first one's `spent`, for all alike."""
    clock = torch.tensor([spent if dist.get_rank() == 0 else 0.0])
    held = [value.grad for value in learned.parameters() if value.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in held] + [clock.to(held[0].device)])
    dist.all_reduce(flat)
    parts = flat[:-1].split([gradient.numel() for gradient in held])
    for gradient, part in zip(held, parts, strict=True):
        gradient.copy_(part.view_as(gradient) / dist.get_world_size())
    return float(flat[-1])


def _momenta(run: Run) -> Path:
    """Where a process keeps the momentum of the matrices that it moves."""
    return Path(run.arguments.out) / f"optimizers-{run.rank}.pt"


def _resumed(
    run: Run, learned: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    """Load the newest state; return the steps and seconds that it was trained."""
    file = run.arguments.out / STATE
    if not file.is_file():
        return 0, 0.0
    state = torch.load(file, weights_only=True)
    learned.load_state_dict(state["model"])
    if _momenta(run).is_file():
        held = torch.load(_momenta(run), weights_only=True)
        for optimizer, momenta in zip(optimizers, held, strict=True):
            highest = [group["highest"] for group in optimizer.param_groups]
            optimizer.load_state_dict(momenta)
            for group, rate in zip(optimizer.param_groups, highest, strict=True):
                group["highest"] = rate  # this run's
    return state["step"], state["spent"]


def _save(
    run: Run,
    learned: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    step: int,
    spent: float,
) -> None:
    _replace(_momenta(run), [optimizer.state_dict() for optimizer in optimizers])
    if run.rank == 0:
        state = {"model": learned.state_dict(), "step": step, "spent": spent}
        _replace(run.arguments.out / STATE, state)


def _replace(file: Path, content: object) -> None:
    partial = file.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(file)
