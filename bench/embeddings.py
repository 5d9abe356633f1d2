"""Vectors a second through the endpoint, and those of libraries in a process of their own.

    python -m bench.embeddings --checkpoint FOLDER [--texts 512] [--rounds 3]

FOLDER is a sentence encoder, as `appliance recipe=minilm` leaves it in `cache.folder`. The texts
are random words, few of them in most and many in some, as sentences and passages are. Each side
gets them 32 at a time: ours by HTTP from two clients of the `openai` package, transformers padded
as they come, sentence-transformers, where it is installed, all at once, which it sorts by length.
Sides take turns, so that what else the machine does falls on all of them; vectors are compared.
CPU is all processes of our server, or the library's own, the client's left out.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import openai
import torch
import transformers

from bench.server_process import ServerCommand, ServerProcess, free_port, machine
from engine.models.registry import family_for

TOGETHER, CLIENTS = 32, 2
LONGEST = 256

Embed = Callable[[list[str]], numpy.ndarray]


def texts_of(
    count: int, tokenizer: transformers.PreTrainedTokenizerBase, longest: int
) -> list[str]:
    """The same each time, of words that are a token each and leave two for the ends of a text.

    Three quarters are of 4 to 24 words, the rest of 40 to 160.
    """
    chance = random.Random(0)
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and len(word) > 2)
    lengths = [
        chance.randint(4, 24) if chance.random() < 0.75 else chance.randint(40, 160)
        for _ in range(count)
    ]
    return [" ".join(chance.choices(words, k=min(length, longest - 2))) for length in lengths]


def by_transformers(folder: Path, longest: int) -> Embed:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def embed(texts: list[str]) -> numpy.ndarray:
        parts = []
        for start in range(0, len(texts), TOGETHER):
            batch = tokenizer(
                texts[start : start + TOGETHER],
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            )
            states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            mean = (states * mask).sum(1) / mask.sum(1)
            parts.append(torch.nn.functional.normalize(mean, dim=1).numpy())
        return numpy.concatenate(parts)

    return embed


def by_sentence_transformers(folder: Path, longest: int) -> Embed:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    words = Transformer(str(folder), max_seq_length=longest)
    pool = Pooling(words.get_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[words, pool, Normalize()], device="cpu")
    return lambda texts: model.encode(texts, batch_size=TOGETHER)


def by_endpoint(address: str) -> Embed:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")

    def ask(texts: list[str]) -> numpy.ndarray:
        answer = client.embeddings.create(model="encoder", input=texts)
        return numpy.array([entry.embedding for entry in answer.data], dtype=numpy.float32)

    def embed(texts: list[str]) -> numpy.ndarray:
        parts = [texts[start : start + TOGETHER] for start in range(0, len(texts), TOGETHER)]
        with ThreadPoolExecutor(CLIENTS) as clients:
            return numpy.concatenate(list(clients.map(ask, parts)))

    return embed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    folder, port = options.checkpoint, free_port()
    longest = min(LONGEST, family_for(folder).text_config()["max_position_embeddings"])
    told = [f"model.path={folder}", "model.name=encoder", f"model.max_len={longest}"]
    told += ["embeddings.serve=true", "embeddings.pooling=mean", f"server.port={port}"]
    command = ServerCommand("ours", [sys.executable, "-m", "appliance", *told], "/readyz", port)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = texts_of(options.texts, tokenizer, longest)
    tokens = sum(map(len, tokenizer(texts, truncation=True, max_length=longest).input_ids))
    print(f"{machine()}\n{len(texts)} texts, {tokens} tokens, {TOGETHER} at a time\n")
    with tempfile.TemporaryDirectory() as logs, ServerProcess(command, Path(logs) / "log") as ours:
        asyncio.run(ours.wait_ready(120))
        sides = {
            "appliance, over HTTP": by_endpoint(f"http://127.0.0.1:{port}"),
            "transformers, padded": by_transformers(folder, longest),
        }
        if importlib.util.find_spec("sentence_transformers") is not None:
            sides["sentence-transformers"] = by_sentence_transformers(folder, longest)
        vectors = {name: embed(texts) for name, embed in sides.items()}  # also warms up
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        cpu: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, embed in sides.items():
                server = name.startswith("appliance")
                used = ours.cpu_seconds if server else time.process_time
                begun, before = time.perf_counter(), used()
                embed(texts)
                seconds[name].append(time.perf_counter() - begun)
                cpu[name].append(used() - before)
    expected = vectors["transformers, padded"]
    print("| | texts/s | tokens/s | spread | CPU ms a text | least cosine |")
    print("| --- | --: | --: | --: | --: | --: |")
    for name, took in seconds.items():
        middle = statistics.median(took)
        rates = f"{len(texts) / middle:,.0f} | {tokens / middle:,.0f}"
        spread = f"{min(took):.2f} to {max(took):.2f} s"
        each = 1000 * statistics.median(cpu[name]) / len(texts)
        cosine = (vectors[name] * expected).sum(1).min()
        print(f"| {name} | {rates} | {spread} | {each:.1f} | {cosine:.6f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
