"""Engines of two ranks: rank 0 in the test's own process, rank 1 in one of its own."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import transformers

from engine.core import Engine
from engine.options import EngineOptions
from engine.parallel.follower import follow
from engine.parallel.processes import Followers
from tests import checkpoints
from tests.engine.harness import Recorder
from tests.gpu.platforms import Recording


def write_odd(folder: Path) -> Path:
    """Weights in another type than they are computed in, and an odd vocabulary."""
    checkpoints.write_qwen2(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(model.config.vocab_size - 1, mean_resizing=False)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def write_gelu(folder: Path) -> Path:
    """A Llama whose activation is not of the pattern that can be fused."""
    checkpoints.write_llama(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    return folder


WRITERS: dict[str, Callable[..., Path]] = {
    **checkpoints.WRITERS,
    "odd": write_odd,
    "gelu": write_gelu,
}


@contextlib.contextmanager
def of_two_ranks(options: EngineOptions) -> Iterator[Recorder]:
    """An engine whose rows of logits are kept."""
    followers = Followers(options)
    followers.start(logging.WARNING)
    try:
        engine = Engine(options, links=followers.links)
        yield Recorder(engine)
        engine.close()
    finally:
        followers.kill()


@contextlib.contextmanager
def of_two_ranks_on_a_card(options: EngineOptions) -> Iterator[tuple[Recorder, Recording]]:
    """The same on the path of a CUDA device, with torch in FlashInfer's place."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=follow_on_a_card, args=(options, theirs), daemon=True)
    process.start()
    theirs.close()
    platform = Recording()
    try:
        engine = Engine(options, platform=platform, links=[ours])
        yield Recorder(engine), platform
        engine.close()
    finally:
        ours.close()
        process.kill()
        process.join()


def follow_on_a_card(options: EngineOptions, link: Connection) -> None:
    follow(options, 1, link, Recording())
