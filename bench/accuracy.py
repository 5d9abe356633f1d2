"""What weights of fewer bits cost in answers, beside the same model with the weights as they are.

    python -m bench.accuracy --checkpoint FOLDER [--quantization int8 int4]
    python -m bench.accuracy --exam

Over text of this repository's pages, in pieces: perplexity, and how often the likeliest next token
is the same behind the same tokens. Over answers chosen greedily: how much of them is the same
before the first other token, and how many are the same throughout.

The exam is the demo's, whose weights were never quantized before: how many of the stored questions
about pictures, clips and nothing its server answers right.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from bench.exam.questions import Question, stored
from bench.exam.served import answers
from engine.core import Engine
from engine.memory.plan import plan, resolve_dtype, size
from engine.native.choice import computes
from engine.options import EngineOptions
from engine.request import Request, SamplingOptions

PAGES = Path(__file__).parents[1] / "docs"
PROMPT = 32  # tokens of a piece that are answered


@dataclass(slots=True, frozen=True)
class Found:
    """What one model makes of the pieces."""

    weights_bytes: int
    logprobs: list[float]  # of each token of the text but the first of a piece
    likeliest: list[int]  # at the same places
    answers: list[list[int]]


@dataclass(slots=True, frozen=True)
class Row:
    """One line of the result, by what the model with its weights as they are has found."""

    name: str
    bytes: int
    perplexity: float
    likeliest: float  # share of places with the same likeliest token
    before: float  # share of the answers' tokens before the first that is another
    equal: int  # answers
    answers: int


def pieces_of(files: Sequence[Path], checkpoint: Path, length: int, most: int) -> list[list[int]]:
    """Tokens of the files' text, one after the other, in pieces of `length`."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in sorted(files))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    whole = [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]
    step = max(1, len(whole) // most)  # of all pages, not the first ones alone
    return whole[::step][:most]


def measure(options: EngineOptions, pieces: Sequence[list[int]], answered: int) -> Found:
    """Compute the pieces, and answers of `answered` tokens to their beginnings."""
    planned = plan(options)
    engine = Engine(planned.resolved)
    read = SamplingOptions(max_tokens=1, temperature=0.0, ignore_eos=True, prompt_logprobs=1)
    answer = SamplingOptions(max_tokens=answered, temperature=0.0, ignore_eos=True)
    for index, piece in enumerate(pieces):
        engine.add(Request(f"read {index}", piece, read))
        engine.add(Request(f"answer {index}", piece[:PROMPT], answer))
    places: dict[str, list[tuple[float, int]]] = {}
    answers: dict[str, list[int]] = {}
    while engine.has_work():
        for output in engine.step():
            if output.request_id.startswith("answer"):
                answers.setdefault(output.request_id, []).extend(output.token_ids)
            elif output.prompt_logprobs:
                noted = [place for place in output.prompt_logprobs if place is not None]
                places[output.request_id] = [(one.logprob, one.top[0][0]) for one in noted]
    read_places = [place for index in range(len(pieces)) for place in places[f"read {index}"]]
    return Found(
        planned.weights_bytes,
        [logprob for logprob, _ in read_places],
        [token for _, token in read_places],
        [answers[f"answer {index}"] for index in range(len(pieces))],
    )


def same_before(some: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens are the same before the first that is another."""
    for place, (one, other) in enumerate(zip(some, others, strict=True)):
        if one != other:
            return place
    return len(some)


def row(name: str, found: Found, whole: Found) -> Row:
    places = zip(found.likeliest, whole.likeliest, strict=True)
    alike = [same_before(*pair) for pair in zip(found.answers, whole.answers, strict=True)]
    return Row(
        name,
        found.weights_bytes,
        math.exp(-sum(found.logprobs) / len(found.logprobs)),
        sum(one == other for one, other in places) / len(found.likeliest),
        sum(alike) / sum(map(len, whole.answers)),
        sum(one == len(answer) for one, answer in zip(alike, whole.answers, strict=True)),
        len(alike),
    )


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| weights | bytes | perplexity | likeliest token the same | answers the same up to "
        "| the same throughout |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in rows:
        cells = [
            one.name,
            size(one.bytes),
            f"{one.perplexity:.3f}",
            f"{100 * one.likeliest:.1f} %",
            f"{100 * one.before:.1f} %",
            f"{one.equal} of {one.answers}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def examined(questions: Sequence[Question], said: dict[str, list[str]]) -> str:
    """Right answers of each model as a table; the first is that of the whole weights."""
    whole = next(iter(said.values()))
    lines = [
        "| weights | right | of those of the whole weights | other right ones | the same answer |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    known = [asked.right(text) for asked, text in zip(questions, whole, strict=True)]
    for name, texts in said.items():
        right = [asked.right(text) for asked, text in zip(questions, texts, strict=True)]
        kept = sum(one and before for one, before in zip(right, known, strict=True))
        same = sum(one == other for one, other in zip(texts, whole, strict=True))
        lines.append(
            f"| {name} | {sum(right)} of {len(questions)} | {kept} of {sum(known)} "
            f"| {sum(right) - kept} | {same} |"
        )
    return "\n".join(lines)


def exam(quantizations: Sequence[str]) -> str:
    """Have the demo examined with its weights as they are and with fewer bits."""
    questions, said = stored(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("null", *quantizations):
            log = Path(folder) / "log"
            said[name] = answers(questions, log, f"model.quantization={name}")
    said = {"as they are": said.pop("null"), **said}
    return examined(questions, said)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.accuracy", description=__doc__.splitlines()[0] if __doc__ else None
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, help="folder with config.json and safetensors")
    what.add_argument("--exam", action="store_true", help="the demo's, through its endpoint")
    add("--quantization", nargs="+", default=["int8", "int4"], choices=["int8", "int4"])
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    add("--text", type=Path, nargs="+", default=sorted(PAGES.glob("*.md")), help="default: docs")
    add("--pieces", type=int, default=48, help="of the text, spread over all of it (default: 48)")
    add("--length", type=int, default=256, help="tokens of a piece (default: 256)")
    add("--answers", type=int, default=64, help="tokens of an answer (default: 64)")
    given = parser.parse_args(argv)
    if given.exam:
        print(exam(given.quantization))
        return 0
    if given.length <= PROMPT:
        parser.error(f"--length must be more than {PROMPT}")
    pieces = pieces_of(given.text, given.checkpoint, given.length, given.pieces)
    if not pieces:
        parser.error("the text is shorter than a piece")
    ours = computes("auto", fuse=True, ranks=1)
    dtype = resolve_dtype(given.dtype, given.checkpoint, "cpu", ours=ours)
    rows, whole = [], None
    for quantization in (None, *given.quantization):
        options = EngineOptions(
            model_path=str(given.checkpoint),
            dtype=dtype,
            device="cpu",
            threads=given.threads,
            page_size=16,
            pages=0,
            max_len=max(given.length + 1, PROMPT + given.answers),
            max_tokens_per_step=512,
            max_sequences=16,
            prefix_cache=False,
            encoder_cache_bytes=0,
            quantization=quantization,
        )
        found = measure(options, pieces, given.answers)
        whole = whole or found
        rows.append(row(quantization or dtype, found, whole))
    tokens = sum(map(len, pieces))
    print(f"{given.checkpoint}: {len(pieces)} pieces, {tokens:,} tokens of text\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
