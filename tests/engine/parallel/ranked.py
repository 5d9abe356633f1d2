"""Engines of several ranks: rank 0 in the test's own process, the others in their own."""

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

from bench.random_weights import randomise
from bench.reference import Recorder
from bench.stand_in.platforms import Recording
from engine.core import Engine
from engine.device.log_lines import LogStyle
from engine.options import EngineOptions
from engine.process.follower import follow
from engine.process.followers import Followers
from tests import checkpoints


def write_odd(folder: Path) -> Path:
    """Weights in another type than they are computed in, and an odd vocabulary."""
    checkpoints.write_qwen2(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(model.config.vocab_size - 1, mean_resizing=False)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def write_threefold(folder: Path) -> Path:
    """Heads for three ranks, and a vocabulary that they do not divide."""
    checkpoints.write_llama(folder)
    path = folder / "config.json"
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}
    path.write_text(json.dumps(json.loads(path.read_text()) | sizes | {"intermediate_size": 192}))
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.vocab_size % 3
    model = transformers.LlamaForCausalLM(config)
    randomise(model, 0)
    model.save_pretrained(folder)
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
    "threefold": write_threefold,
    "gelu": write_gelu,
}


@contextlib.contextmanager
def of_ranks(options: EngineOptions) -> Iterator[Recorder]:
    """An engine whose rows of logits are kept."""
    followers = Followers(options)
    followers.start(LogStyle(logging.WARNING, json=False))
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
