"""Bringing a model up: weights, plan, prompt side, engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from appliance.config.compose import Composed
from appliance.config.environment import HUB_TOKENS, forget
from appliance.config.errors import ConfigurationError
from appliance.lifecycle import Lifecycle
from appliance.log_lines import logs_json
from appliance.service import Service

if TYPE_CHECKING:
    from appliance.client import Client
    from appliance.generation.generation import Generation
    from appliance.media.intake import Intake
    from engine.memory.plan import Plan
    from engine.process.spawned import SpawnedEngine

Made = TypeVar("Made")
logger = logging.getLogger("appliance.serve")

POLL_SECONDS = 0.1
MEDIA_THREADS = 2


class Loader:
    """Fills a service with what the composed recipe names; heavy imports happen in its threads."""

    def __init__(self, composed: Composed, *, in_process: bool = False) -> None:
        self._composed = composed
        self._in_process = in_process  # the engine in a thread: for the offline API
        self.client: Client | None = None
        self.summary = ""
        self._lifecycle = Lifecycle()
        self._intake: Intake | None = None
        self._spawned: SpawnedEngine | None = None

    async def load(self, service: Service) -> None:
        """Load it all and set `service.generation`. Raises EngineError or ConfigurationError."""
        lifecycle = self._lifecycle = service.lifecycle
        lifecycle.phase = "fetching weights"
        folder = await in_daemon(self._fetch)
        if not self._in_process:  # neither the engine nor those who read media need it
            forget(HUB_TOKENS)
        self._spawn(folder)
        lifecycle.phase, lifecycle.fraction, lifecycle.detail = "planning", 0.0, ""
        plan = await in_daemon(self._plan, folder)
        lifecycle.phase = "starting"
        self.client = client = await in_daemon(self._make_client, plan)
        prompt_side = asyncio.create_task(self._prompt_side(folder, plan, service))
        start = asyncio.create_task(client.start())
        watch = asyncio.create_task(self._follow_phase())
        try:  # what is wrong with one side does not wait for the other
            _, generation = await asyncio.gather(start, prompt_side)
        finally:
            for task in (watch, start, prompt_side):
                task.cancel()
            await asyncio.gather(start, prompt_side, return_exceptions=True)
        service.metrics.watch(client)
        client.on_encode = partial(service.metrics.media_took, "encode")
        service.generation = generation
        answers = generation.style.in_words
        self.summary = await in_daemon(self._summarize, plan, service.address, answers)
        lifecycle.phase, lifecycle.fraction, lifecycle.loaded = "ready", 1.0, True

    async def died(self) -> str:
        """Waits for the engine to be gone unexpectedly; returns why."""
        assert self.client is not None
        return await self.client.died()

    async def stop(self) -> None:
        """End the media workers and the engine process, whatever they are doing."""
        if self._intake is not None:
            await self._intake.close()
        client = self.client
        if client is None:
            if self._spawned is not None:
                self._spawned.end()
            return
        loading = client.phase not in ("ready", "dead")
        stopping = asyncio.create_task(client.stop())
        await asyncio.sleep(0)
        if loading:
            self.kill()  # it does not listen yet
        await stopping

    def kill(self) -> None:
        """End the engine process at once."""
        if self.client is not None:
            self.client.kill()
        elif self._spawned is not None:
            self._spawned.end()

    def _fetch(self) -> Path:
        from appliance.weights.source import resolve

        config = self._composed.config
        return resolve(config.model, config.cache, self._tell)

    def _spawn(self, folder: Path) -> None:
        """Let the engine's process import while the card is asked, which takes seconds.

        On a CPU the plan is made at once, of memory that the process would already take from.
        """
        config = self._composed.config
        ranks = config.parallelism.tensor
        if config.engine.device == "cuda" and ranks == 1 and not self._in_process:
            from engine.process.spawned import SpawnedEngine

            self._spawned = SpawnedEngine(str(folder))

    def _tell(self, phase: str, fraction: float, detail: str = "") -> None:
        lifecycle = self._lifecycle
        lifecycle.phase, lifecycle.fraction, lifecycle.detail = phase, fraction, detail

    def _plan(self, folder: Path) -> Plan:
        from appliance.kernels import settle_kernels
        from appliance.planning import how_to_switch_on, plan_recipe, switched_off

        config = self._composed.config
        settle_kernels(config)  # as before the server listened; a script comes here at once
        plan = plan_recipe(config, folder)
        if config.recipe is None and (modalities := switched_off(config, folder)):
            logger.info(how_to_switch_on(modalities))
        return plan

    def _summarize(self, plan: Plan, address: str, answers: str) -> str:
        """What is to be printed; where the log is JSON it is a line of the log instead."""
        from appliance.summary import facts, render

        if not logs_json():
            return render(self._composed, plan, address, answers)
        told = facts(self._composed, plan, address, answers)
        fields = {name.replace(" ", "_"): text for name, text in told.items()}
        logger.info("serving", extra={"fields": fields})
        return ""

    def _make_client(self, plan: Plan) -> Client:
        from engine.process.client import EngineClient

        options, spawned = plan.resolved, self._spawned
        return EngineClient(options, in_process=self._in_process, spawned=spawned)

    async def _prompt_side(self, folder: Path, plan: Plan, service: Service) -> Generation:
        threads = ThreadPoolExecutor(MEDIA_THREADS, "media")
        self._intake = intake = await in_daemon(self._make_intake, folder, threads, service)
        workers = asyncio.create_task(intake.start() if intake else asyncio.sleep(0))
        try:
            generation = await in_daemon(
                self._make_generation, folder, plan, service, threads, intake
            )
            await workers
        finally:
            workers.cancel()
        return generation

    def _make_intake(
        self, folder: Path, threads: ThreadPoolExecutor, service: Service
    ) -> Intake | None:
        from appliance.planning import allowed_modalities

        config = self._composed.config
        if not allowed_modalities(config.media):
            return None
        from appliance.media.assembly import intake_for
        from engine.models.registry import family_for

        return intake_for(config, family_for(folder), threads, service.metrics)

    def _make_generation(
        self,
        folder: Path,
        plan: Plan,
        service: Service,
        threads: ThreadPoolExecutor,
        intake: Intake | None,
    ) -> Generation:
        from appliance.generation.configured import style_for
        from appliance.generation.generation import Generation
        from appliance.generation.prompting import Limits, Prompting
        from appliance.generation.sampling_defaults import sampling_defaults
        from appliance.generation.scores import ScoreSettings
        from appliance.generation.transcribing import Transcriber
        from appliance.generation.vectors import VectorSettings
        from appliance.planning import allowed_modalities, switched_off
        from appliance.prompt.template import ChatTemplate
        from appliance.prompt.tokenizer import Tokenizer
        from engine.models.registry import family_for
        from engine.models.whisper import Whisper

        config = self._composed.config
        assert self.client is not None
        family = family_for(folder)
        with _told(folder):
            tokenizer = Tokenizer(folder)
            vectors = None
            if config.embeddings.serve:
                vectors = VectorSettings.of(config.embeddings, family)
            scores = ScoreSettings.of(family) if config.embeddings.rerank else None

        def template_of(source: str | None) -> ChatTemplate:
            with _told(source or folder):
                text = Path(source).read_text(encoding="utf-8") if source else None
                made = ChatTemplate(text, tokenizer, family, config.chat.template_kwargs)
                made.check()
                return made

        template, source = template_of(config.chat.template), config.embeddings.template
        with _told(config.chat.template or folder):
            style = style_for(config.chat, template)
        prompting = Prompting(
            tokenizer=tokenizer,
            template=template,
            limits=Limits(plan.max_len, plan.pages, plan.page_size, plan.max_sequences),
            intake=intake,
            modalities=allowed_modalities(config.media),
            metrics=service.metrics,
            pool=threads,
            switched_off=switched_off(config, folder),
            embedding_template=template_of(source) if source and vectors else None,
        )
        generation = Generation(
            client=self.client,
            prompting=prompting,
            metrics=service.metrics,
            sampling=sampling_defaults(config.sampling, folder),
            style=style,
            vectors=vectors,
            scores=scores,
            generates=not family.encoder_only,
        )
        if isinstance(family, Whisper):
            generation.transcriber = Transcriber(generation, family)
        return generation

    async def _follow_phase(self) -> None:
        client, lifecycle = self.client, self._lifecycle
        assert client is not None
        while True:
            lifecycle.phase, lifecycle.fraction = client.phase, client.fraction
            await asyncio.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _told(file: str | Path) -> Iterator[None]:
    """Raise ConfigurationError for what of a file cannot be read or taken, in words of ours."""
    try:
        yield
    except (OSError, ValueError) as error:
        why = "cannot be read" if isinstance(error, OSError | UnicodeError) else str(error)
        raise ConfigurationError(f"{file}: {why}") from error


async def in_daemon(function: Callable[..., Made], *arguments: Any) -> Made:
    """Run `function` in a thread that does not hold up the end of the process."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[Made] = loop.create_future()

    def settle(result: Made | None, fault: BaseException | None) -> None:
        if made.done():
            return
        if fault is not None:
            made.set_exception(fault)
        else:
            made.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, fault = None, None
        try:
            result = function(*arguments)
        except BaseException as caught:
            fault = caught
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, fault)

    threading.Thread(target=work, name=function.__name__, daemon=True).start()
    return await made
