"""The media policies of a composed recipe."""

from __future__ import annotations

from pathlib import Path

from appliance.config.errors import ConfigurationError
from appliance.config.schema import AudioConfig, ImageConfig, MediaConfig, VideoConfig
from appliance.media.domains import read_domain, read_port
from appliance.media.host import read_host
from appliance.media.policy import MediaPolicy

PROXY = "http://"


def media_policies(config: MediaConfig) -> dict[str, MediaPolicy]:
    """The policy of every modality. Raises ConfigurationError with one line."""
    for entry in config.allowed_domains:
        try:
            read_domain(entry)
        except ValueError as wrong:
            raise ConfigurationError(f"media.allowed_domains: '{entry}' {wrong}") from None
    if config.proxy is not None:
        check_proxy(config.proxy)
    if config.local_path is not None and not Path(config.local_path).is_absolute():
        raise ConfigurationError(
            f"media.local_path is '{config.local_path}', must begin at the root: /folder"
        )
    groups: dict[str, ImageConfig | VideoConfig | AudioConfig]
    groups = {"image": config.image, "video": config.video, "audio": config.audio}
    return {
        modality: MediaPolicy(
            modality=modality,
            allowed_domains=tuple(config.allowed_domains),
            allow_private=config.allow_private,
            redirects=config.redirects,
            max_redirects=config.max_redirects,
            schemes=tuple(config.schemes),
            local_path=config.local_path,
            proxy=config.proxy,
            timeout=group.timeout,
            max_bytes=group.max_bytes,
        )
        for modality, group in groups.items()
    }


def check_proxy(url: str) -> None:
    """Raise ConfigurationError unless `url` is `http://host:port`."""
    host, _, port = url.removeprefix(PROXY).rpartition(":")
    try:
        if not url.startswith(PROXY):
            raise ValueError("only http:// is spoken to a proxy")
        read_host(host)
        read_port(port)
    except ValueError as wrong:
        raise ConfigurationError(
            f"media.proxy must be http://host:port, without user name and path: {wrong}"
        ) from None
