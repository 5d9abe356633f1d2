"""What the host does in a step of decoding on a card, the card's own work taken away.

    python -m bench.host_step [--profile]

The engine takes the path of a CUDA device on this machine's CPU: scheduling, the batch, what a
recording reads, choosing, handing out. Attention is not planned, nothing is replayed, logits are
zeros and the vocabulary is tiny. On a card each copy costs a little more: memory is pinned.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import statistics
import tempfile
import time
from pathlib import Path

import torch

from bench.gpu_tiny import write_tiny
from bench.reference import greedy
from bench.stand_in.platforms import Recording, cuda_path
from engine.core import Engine
from engine.request import Request, SamplingOptions
from engine.running.runner import Computed
from engine.scheduling.batch import Batch

SHAPES = ((1, 1024), (32, 1024), (32, 4096), (128, 1024), (128, 4096))  # sequences, tokens of each
STEPS = 60
SETTLING = 5  # steps that are not counted: the first of them fill what is kept from step to step
PAGE = 16

CHOICES: dict[str, SamplingOptions] = {
    "greedy": greedy(400),
    "with penalties": greedy(400, frequency_penalty=0.1, repetition_penalty=1.1),
}


def idle_engine(folder: Path, sequences: int, length: int) -> Engine:
    """An engine in which a model takes no time, of room for so many sequences."""
    most = length + CHOICES["greedy"].max_tokens
    engine = cuda_path(
        folder,
        Recording(),
        graphs=True,
        max_len=most,
        pages=sequences * -(-most // PAGE),
        max_sequences=sequences,
        max_tokens_per_step=8192,
        prefix_cache=False,
    )
    runner = engine._runner
    graphs = runner._graphs
    assert graphs is not None
    graphs._backend.plan_kernel = lambda *arguments: None  # type: ignore[method-assign]
    for size in graphs.sizes:
        graphs._recordings[size].graph.replay = lambda: None  # type: ignore[method-assign]

    @torch.inference_mode()
    def run(batch: Batch) -> Computed:
        if graphs.fits(batch):
            return Computed(graphs.run(batch))
        return Computed(torch.zeros(len(batch.logit_rows), runner.vocabulary))

    runner.run = run  # type: ignore[method-assign]
    return engine


def decoding(folder: Path, sequences: int, length: int, sampling: SamplingOptions) -> Engine:
    """An engine all of whose sequences have their first tokens."""
    engine = idle_engine(folder, sequences, length)
    for index in range(sequences):
        engine.add(Request(str(index), [7] * length, sampling))
    scheduler = engine._scheduler
    while scheduler.waiting or any(sequence.remaining > 1 for sequence in scheduler.running):
        engine.step()
    for _ in range(SETTLING):
        engine.step()
    return engine


def milliseconds(engine: Engine) -> float:
    """The median of steps."""
    seconds = []
    for _ in range(STEPS):
        begun = time.perf_counter()
        outputs = engine.step()
        seconds.append(time.perf_counter() - begun)
        assert len(outputs) == len(engine._scheduler.running) > 0
    return statistics.median(seconds) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", action="store_true", help="show where each case's time goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load average {os.getloadavg()[0]:.2f}\n")
    print("| sequences | tokens of each | " + " | ".join(f"{name}, ms" for name in CHOICES) + " |")
    print("| ---: | ---: |" + " ---: |" * len(CHOICES))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write_tiny("llama", folder)
        config = json.loads((folder / "config.json").read_text())
        config["max_position_embeddings"] = 1 << 16
        (folder / "config.json").write_text(json.dumps(config))
        for sequences, length in SHAPES:
            engines = [decoding(folder, sequences, length, each) for each in CHOICES.values()]
            found = " | ".join(f"{milliseconds(engine):.2f}" for engine in engines)
            print(f"| {sequences} | {length} | {found} |", flush=True)
            if options.profile:
                for engine in engines:
                    with cProfile.Profile() as taken:
                        milliseconds(engine)
                    pstats.Stats(taken).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
