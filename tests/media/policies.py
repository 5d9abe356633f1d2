"""Policies as the configuration's defaults make them, with changes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from appliance.config.compose import compose
from appliance.config.schema import MediaConfig
from appliance.media.assembly import media_settings
from appliance.media.configured import media_policies
from appliance.media.fetch import Fetcher
from appliance.media.limits import AudioPolicy, EmbeddingsPolicy, ImagePolicy, VideoPolicy
from appliance.media.policy import MediaPolicy, Resolve, Target, check_addresses, read_url
from appliance.media.prepare import MediaSettings


@cache
def defaults() -> MediaConfig:
    return compose(["model.path=/nowhere", "model.name=tiny"]).config.media


def settings(**changes: Any) -> MediaSettings:
    return replace(media_settings(defaults()), **changes)


def image_policy(**changes: Any) -> ImagePolicy:
    return replace(settings().image, **changes)


def video_policy(**changes: Any) -> VideoPolicy:
    return replace(settings().video, **changes)


def audio_policy(**changes: Any) -> AudioPolicy:
    return replace(settings().audio, **changes)


def embeddings_policy(**changes: Any) -> EmbeddingsPolicy:
    return replace(settings().embeddings, **changes)


def media_policy(**changes: Any) -> MediaPolicy:
    """Of images, unless it is told otherwise."""
    return replace(media_policies(defaults())["image"], **changes)


def check_url(url: str, policy: MediaPolicy, resolve: Resolve, *, param: str = "url") -> Target:
    """The vetted target of a URL, its name resolved: what a fetch does before it dials."""
    return check_addresses(read_url(url, policy, param=param), policy, resolve, param=param)


async def fetched(fetcher: Fetcher, url: str, policy: MediaPolicy, *, param: str) -> bytes:
    """Content of a URL that the policy allows."""
    return (await fetcher.fetch(read_url(url, policy, param=param), policy, param=param)).data
