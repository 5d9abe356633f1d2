"""What can be known to be wrong before the server listens, and before anything large is read."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from appliance.addresses import check_socket_path
from appliance.certificates import certificate_of
from appliance.config.errors import ConfigurationError
from appliance.config.schema import Config, MediaConfig
from appliance.kernels import check_compiled, settle_kernels
from appliance.media.reader import reader_for
from appliance.planning import check_device_keys, plan_recipe
from appliance.weights.base_models import names_others
from appliance.weights.room import check_cache, temporary_folder
from appliance.weights.source import check_sealed, check_source, kept
from engine.device.cards import card
from engine.errors import EngineError

CARDS = ("/dev/nvidiactl", "/dev/dxg")  # of drivers on Linux and on Windows' subsystem for it
EVERYTHING = 1 << 60  # bytes that hold any plan; a card is asked for its memory while loading


def check(config: Config) -> None:
    """Raise ConfigurationError with one line for what the operator can correct."""
    cache = Path(config.cache.folder)
    if (temporary := temporary_folder(cache)).is_relative_to(cache):
        os.environ["TMPDIR"] = str(temporary)  # torch wants one, in the engine's process
    if config.server.uds is not None:
        check_socket_path(config.server.uds)
    certificate_of(config.server)
    check_traces(config.server.traces)
    check_sound(config.media)
    reader_for(config.media)  # are the folder and the certificates that it names there?
    folder = check_source(config.model)
    try:
        check_device_keys(config.engine)
        settle_kernels(config)
        check_device(config)
        if folder is not None and not names_others(folder):
            there = EVERYTHING if config.engine.device == "cuda" else None
            check_compiled(plan_recipe(config, folder, there).options, folder)
    except EngineError as error:
        sha256 = config.model.path.partition("#sha256=")[2]
        if folder is not None and sha256:
            check_sealed(folder, sha256)  # a file that has changed is the better reason
        raise ConfigurationError(str(error)) from error
    if folder is None and not kept(config.model, config.cache):
        check_cache(cache)


def check_traces(url: str | None) -> None:
    """Raise ConfigurationError for what is no URL, or where nothing could send traces."""
    if url is None:
        return
    if not re.fullmatch(r"https?://[^\s/?#]+/[^\s?#]*", url):
        raise ConfigurationError(
            "server.traces must be the URL of an OTLP/HTTP collector with its path, such as "
            "http://127.0.0.1:4318/v1/traces"
        )
    for module in ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ConfigurationError(
                "server.traces needs OpenTelemetry, which is not installed: "
                "`pip install 'model-appliance[traces]'`, or set server.traces=null"
            )


def check_sound(media: MediaConfig) -> None:
    """Raise ConfigurationError where sound is allowed and what turns it into spectrograms is not
    there: a bundle may have been made without.
    """
    if media.audio.limit > 0 and importlib.util.find_spec("librosa") is None:
        raise ConfigurationError(
            f"media.audio.limit={media.audio.limit}: sound needs librosa, which is not installed: "
            "`pip install librosa`, or set media.audio.limit=0"
        )


def check_device(config: Config) -> None:
    """Ask for the card where nothing looks like one: asking takes seconds, and loading asks too."""
    tools = all(importlib.util.find_spec(name) for name in ("flashinfer", "accelerate"))
    if config.engine.device == "cuda" and not (tools and any(Path(one).exists() for one in CARDS)):
        card()
