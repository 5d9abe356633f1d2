"""What drafts from a sequence's own text are worth: the same requests with them and without.

    python -m bench.speculation --checkpoint FOLDER [--tokens 8]

Work that quotes its prompt, greedy, and open chat, drawn with seeds; in-process, with drafts and
without in turns. The answers must be the same. Rates are of the best turn of each, from the first
tokens on.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers

from appliance.config.schema import NATIVE
from engine.core import Engine
from engine.device.process_setup import keep_memory
from engine.memory.plan import plan, resolve_dtype
from engine.native.choice import computes
from engine.options import EngineOptions
from engine.request import Request, SamplingOptions

PAGE_SIZE = 16
TEMPERATURES = {"quoting": 0.0, "chat": 0.7}  # of each kind of work
NAMES = ("Abel", "Ines", "Marta", "Oskar", "Petra", "Rosa", "Sven", "Tilda", "Vera", "Xenia")
TOWNS = ("Bergen", "Cadiz", "Dublin", "Evora", "Ghent", "Hamburg", "Izmir", "Krakow", "Lyon")
GOODS = ("lamps", "chairs", "ladders", "kettles", "mirrors", "baskets", "curtains", "clocks")
QUESTIONS = (
    "Why is the sky blue in the daytime and red in the evening?",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "What should I think about before I adopt a dog?",
    "Explain how a bill becomes a law to a child of ten.",
    "Give me some ideas for a dinner without meat for six people.",
    "How does a refrigerator keep things cold?",
    "Describe a walk through an old town in autumn.",
    "What are good habits for somebody who learns a language?",
)


@dataclass(slots=True, frozen=True)
class Turn:
    """One run of all requests."""

    tokens: int  # generated after each answer's first
    seconds: float
    sequence_steps: int  # in which a sequence got tokens
    drafted: int
    accepted: int
    answers: dict[str, list[int]]

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def report(seed: int) -> str:
    """A text of facts that nobody can know by heart."""
    draw = random.Random(seed)
    lines = [
        f"{draw.choice(NAMES)} of {draw.choice(TOWNS)} ordered {draw.randrange(12, 990)} "
        f"{draw.choice(GOODS)} for {draw.randrange(100, 9900)} euros on {draw.choice(TOWNS)} "
        f"road {draw.randrange(1, 200)}."
        for _ in range(7)
    ]
    return " ".join(lines)


def questions(work: str, count: int) -> list[str]:
    """What `count` users ask."""
    if work == "chat":
        return [QUESTIONS[index % len(QUESTIONS)] for index in range(count)]
    ask = "Repeat the following text word for word, each sentence as an item of a list.\n\n"
    return [ask + report(index) for index in range(count)]


def prompts(checkpoint: Path, work: str, count: int) -> list[list[int]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    found = []
    for text in questions(work, count):
        messages = [{"role": "user", "content": text}]
        rendered = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        found.append(tokenizer.encode(rendered, add_special_tokens=False))
    return found


def run(engine: Engine, asked: list[list[int]], tokens: int, temperature: float) -> Turn:
    """Answer all prompts together; the clock starts when each has its first token."""
    answers: dict[str, list[int]] = {str(index): [] for index in range(len(asked))}
    for index, ids in enumerate(asked):
        sampling = SamplingOptions(tokens, temperature, seed=index)
        engine.add(Request(str(index), ids, sampling))
    while not all(answers.values()):
        for output in engine.step():
            answers[output.request_id] += output.token_ids
    first = sum(len(answer) for answer in answers.values())
    before, steps, start = engine.stats(), 0, time.perf_counter()
    while engine.has_work():
        outputs = engine.step()
        steps += len({output.request_id for output in outputs})
        for output in outputs:
            answers[output.request_id] += output.token_ids
    seconds, after = time.perf_counter() - start, engine.stats()
    return Turn(
        sum(len(answer) for answer in answers.values()) - first,
        seconds,
        steps,
        after.draft_tokens - before.draft_tokens,
        after.accepted_tokens - before.accepted_tokens,
        answers,
    )


class SpeculationBench:
    """Two engines of one checkpoint, one of which drafts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.checkpoint: Path = options.checkpoint
        ours = computes(options.native, fuse=True, ranks=1)
        self.dtype = resolve_dtype(options.dtype, self.checkpoint, "cpu", ours=ours)
        self.output_tokens: int = options.output_tokens
        self.turns: int = options.turns
        plain = plan(
            EngineOptions(
                model_path=str(self.checkpoint),
                dtype=self.dtype,
                device="cpu",
                threads=options.threads,
                page_size=PAGE_SIZE,
                pages=0,
                max_len=1024,
                max_tokens_per_step=1024,
                max_sequences=max(options.batch),
                prefix_cache=True,
                encoder_cache_bytes=0,
                native=options.native,
            )
        ).resolved
        drafting = replace(plain, speculation="ngram", speculation_tokens=options.tokens)
        self.engines = {False: Engine(plain), True: Engine(drafting)}
        keep_memory()

    def row(self, work: str, count: int) -> list[str]:
        """One line of the table."""
        asked = prompts(self.checkpoint, work, count)
        wanted = self.output_tokens, TEMPERATURES[work]
        for engine in self.engines.values():
            run(engine, asked, *wanted)
        best: dict[bool, Turn] = {}
        for _ in range(self.turns):
            for drafts, engine in self.engines.items():
                turn = run(engine, asked, *wanted)
                if drafts not in best or turn.rate > best[drafts].rate:
                    best[drafts] = turn
        plain, drafted = best[False], best[True]
        same = plain.answers == drafted.answers
        return [
            work,
            str(count),
            f"{drafted.drafted / drafted.sequence_steps:.2f}",
            f"{drafted.accepted / max(drafted.drafted, 1):.2f}",
            f"{drafted.tokens / drafted.sequence_steps:.2f}",
            f"{plain.rate:.0f}",
            f"{drafted.rate:.0f}",
            f"{drafted.rate / plain.rate:.2f}",
            "yes" if same else "NO",
        ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.speculation",
        description=__doc__.splitlines()[0] if __doc__ else None,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder with a chat template")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    add("--batch", type=int, nargs="+", default=[1, 8], help="sequences at once")
    add("--tokens", type=int, default=8, help="engine.speculation_tokens (default: 8)")
    add("--output-tokens", type=int, default=192)
    add("--turns", type=int, default=4, help="runs of each, in turns (default: 4)")
    add("--native", default="auto", choices=NATIVE, help="kernels, as engine.native has them")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    bench = SpeculationBench(options)
    print(
        f"{bench.checkpoint.name} {bench.dtype}, {options.threads} threads, up to "
        f"{options.tokens} drafts, {options.output_tokens} tokens an answer, load before "
        f"{os.getloadavg()[0]:.2f}"
    )
    print(
        "| work | sequences | drafted a step | accepted | tokens a step | tok/s without | with "
        "| ratio | same answers |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    )
    wrong = False
    for work in TEMPERATURES:
        for count in options.batch:
            cells = bench.row(work, count)
            wrong |= cells[-1] != "yes"
            print(f"| {' | '.join(cells)} |", flush=True)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
