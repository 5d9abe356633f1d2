"""The media intake of a composed recipe."""

from __future__ import annotations

import logging
import os
import resource
from concurrent.futures import Executor
from operator import attrgetter
from pathlib import Path

from appliance.config.errors import ConfigurationError
from appliance.config.schema import Config, MediaConfig
from appliance.media.cache import MediaCache
from appliance.media.digest import processing_salt
from appliance.media.image_formats import decoded
from appliance.media.intake import Intake
from appliance.media.limits import AudioPolicy, EmbeddingsPolicy, ImagePolicy, VideoPolicy
from appliance.media.pool import MediaPool
from appliance.media.prepare import MediaSettings
from appliance.media.reader import reader_for
from appliance.media.worker import WorkerSettings
from appliance.metrics import Metrics
from appliance.planning import allowed_modalities
from appliance.request_options import CEILINGS
from engine.models.family import Family

logger = logging.getLogger(__name__)

GIB = 1 << 30
CORES_PER_WORKER = 4  # the others are the engine's and the server's
DESCRIPTOR_SHARE = 4  # cached items may take one in so many


def intake_for(config: Config, family: Family, threads: Executor, metrics: Metrics) -> Intake:
    """The intake for a recipe and the family of its checkpoint; its workers are not started yet.

    Raises ConfigurationError for a policy that cannot be followed.
    """
    media = config.media
    settings = media_settings(media)
    workers = WorkerSettings(
        folder=str(family.folder),
        kinds=kinds_of(media),
        media=settings,
        memory_bytes=int(media.worker_gb * GIB),
        log_level=logging.getLogger("appliance").getEffectiveLevel(),
    )
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Intake(
        reader=reader_for(media),
        pool=MediaPool(
            workers,
            workers=media.workers or max(1, len(os.sched_getaffinity(0)) // CORES_PER_WORKER),
            places=media.queue,
            seconds=media.worker_seconds,
            metrics=metrics,
        ),
        cache=MediaCache(int(config.cache.media_gb * GIB), descriptors // DESCRIPTOR_SHARE),
        limits={name: getattr(media, name).limit for name in allowed_modalities(media)},
        embeddings=media.embeddings.accept,
        shared=config.cache.share == "all",
        salt=processing_salt(Path(family.folder), type(family).__name__, settings),
        threads=threads,
        metrics=metrics,
    )


def kinds_of(media: MediaConfig) -> tuple[str, ...]:
    """What workers have to be able to prepare."""
    kinds = list(allowed_modalities(media))
    if media.embeddings.accept and "image" in kinds:
        kinds.append("image_embeds")
    return tuple(kinds)


def media_settings(config: MediaConfig) -> MediaSettings:
    """What workers need to know of a recipe. Raises ConfigurationError."""
    image, video, audio = config.image, config.video, config.audio
    formats = decoded(image.formats)
    if left_out := [name for name in image.formats if name not in formats]:
        logger.warning(
            "media.image.formats: %s cannot be decoded here and is left out", ", ".join(left_out)
        )
    for option in config.allow_request_options:
        key = f"{option.split('.')[0]}.{CEILINGS[option]}"
        if attrgetter(key)(config) is None:
            raise ConfigurationError(
                f"media.allow_request_options lists {option}: set media.{key}, which a request may "
                "then lower"
            )
    return MediaSettings(
        image=ImagePolicy(
            max_bytes=image.max_bytes,
            max_pixels=image.max_pixels,
            formats=formats,
            rgba_background=tuple(image.rgba_background),
        ),
        video=VideoPolicy(
            max_bytes=video.max_bytes,
            max_seconds=video.max_seconds,
            max_pixels=video.max_pixels,
            max_decoded_bytes=video.max_decoded_bytes,
            formats=formats,
            rgba_background=tuple(image.rgba_background),
            frames=video.frames,
            fps=video.fps,
            frame_pixels=video.frame_pixels,
            tokens=video.tokens,
        ),
        audio=AudioPolicy(max_bytes=audio.max_bytes, max_seconds=audio.max_seconds),
        embeddings=EmbeddingsPolicy(max_bytes=config.embeddings.max_bytes),
    )
