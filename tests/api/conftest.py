"""A service over a fake engine, with the prompt side of a tiny checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import EllipsisType
from typing import Any

import pytest
from starlette.types import ASGIApp

from appliance.api.app import create_app
from appliance.config.compose import compose
from appliance.config.schema import Config
from appliance.generation.configured import style_for
from appliance.generation.generation import Generation
from appliance.generation.prompting import Limits, Prompting
from appliance.generation.sampling_defaults import SamplingDefaults
from appliance.generation.scores import ScoreSettings
from appliance.generation.vectors import VectorSettings
from appliance.media.intake import Intake
from appliance.metrics import Metrics
from appliance.prompt.template import ChatTemplate
from appliance.prompt.tokenizer import Tokenizer
from appliance.service import Service
from engine.models.family import Family
from engine.models.registry import family_for
from tests.api.asgi_client import AsgiClient
from tests.api.fake_engine import FakeEngine, Script, speak
from tests.checkpoints import write_llama

MAX_LEN = 256


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class PromptSide:
    tokenizer: Tokenizer
    template: ChatTemplate
    family: Family

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, special=False)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def prompt_side(checkpoint: Path) -> PromptSide:
    tokenizer, family = Tokenizer(checkpoint), family_for(checkpoint)
    template = ChatTemplate(None, tokenizer, family, ["enable_thinking"])
    return PromptSide(tokenizer, template, family)


@pytest.fixture(scope="session")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@cache
def composed(overrides: tuple[str, ...]) -> Config:
    given = ["model.path=/nowhere", "model.name=tiny", "media.image.limit=0"]
    return compose([*given, "chat.template_kwargs=[enable_thinking]", *overrides]).config


def configuration(*overrides: str) -> Config:
    return deepcopy(composed(overrides))


@dataclass
class Kitchen:
    """A service and the engine behind it."""

    service: Service
    engine: FakeEngine
    app: ASGIApp
    client: AsgiClient


@pytest.fixture
def cook(prompt_side: PromptSide, pool: ThreadPoolExecutor) -> Callable[..., Kitchen]:
    """Make a service of a script for the engine, overrides of keys, and fields of its own."""

    def make(script: Script | EllipsisType = ..., *overrides: str, **fields: Any) -> Kitchen:
        if isinstance(script, EllipsisType):
            script = speak(5, 6, 7)
        config = configuration(*overrides)
        service = Service(config, "tiny", "0123456789ab", **fields)
        engine = FakeEngine(script)
        service.generation = generation(prompt_side, engine, config, service.metrics, pool)
        service.metrics.watch(engine)
        service.lifecycle.loaded = True
        app = create_app(service)
        return Kitchen(service, engine, app, AsgiClient(app))

    return make


def generation(
    side: PromptSide,
    engine: FakeEngine,
    config: Config,
    metrics: Metrics,
    pool: ThreadPoolExecutor,
    intake: Intake | None = None,
    modalities: tuple[str, ...] = (),
    max_len: int = MAX_LEN,
    generates: bool = True,
) -> Generation:
    prompting = Prompting(
        tokenizer=side.tokenizer,
        template=side.template,
        limits=Limits(max_len=max_len, pages=max_len // 8, page_size=16, max_sequences=4),
        intake=intake,
        modalities=modalities,
        metrics=metrics,
        pool=pool,
    )
    vectors = VectorSettings.of(config.embeddings, side.family)
    scores = ScoreSettings() if config.embeddings.rerank else None
    return Generation(
        client=engine,
        prompting=prompting,
        metrics=metrics,
        sampling=SamplingDefaults(),
        style=style_for(config.chat, side.template),
        vectors=vectors if config.embeddings.serve else None,
        scores=scores,
        generates=generates,
    )
