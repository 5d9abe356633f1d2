"""From the URL in a request to the bytes behind it, whatever kind of URL it is."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path

from appliance.config.errors import ConfigurationError
from appliance.config.schema import MediaConfig
from appliance.errors import media_timeout, media_too_large
from appliance.media.configured import media_policies
from appliance.media.data_url import read_data_url
from appliance.media.fetch import Fetcher
from appliance.media.freshness import Fetched
from appliance.media.local_file import read_local_file
from appliance.media.policy import MediaPolicy, Target, read_url


class MediaReader:
    """Reads items under the policy of their modality, built once a server."""

    def __init__(self, policies: Mapping[str, MediaPolicy], fetcher: Fetcher) -> None:
        self._policies = policies
        self._fetcher = fetcher

    def check(self, url: str, modality: str, param: str) -> Target:
        """What a URL means, without resolving or reading anything. Raises ApplianceError."""
        return read_url(url, self._policies[modality], param=param)

    def check_sent(self, data: bytes, modality: str, param: str) -> None:
        """Raise ApplianceError for content beyond the limit, that came with the request itself."""
        limit = self._policies[modality].max_bytes
        if len(data) > limit:
            raise media_too_large(modality, limit, param)

    async def read(self, target: Target, modality: str, param: str, pool: Executor) -> Fetched:
        """Content of what `check` returned; files and data: URLs are read in `pool`.

        A list of frames stays base64. Raises ApplianceError.
        """
        policy = self._policies[modality]
        if target.host:
            return await self._fetcher.fetch(target, policy, param=param)
        loop = asyncio.get_running_loop()
        if target.scheme == "data":
            return Fetched(await loop.run_in_executor(pool, _from_data_url, target, policy, param))
        try:
            async with asyncio.timeout(policy.timeout):
                return Fetched(await loop.run_in_executor(pool, _from_file, target, policy, param))
        except TimeoutError:
            raise media_timeout(modality, policy.timeout, param) from None

    async def close(self) -> None:
        """Close every connection."""
        await self._fetcher.close()


def reader_for(config: MediaConfig) -> MediaReader:
    """A reader under the configured policies.

    Raises ConfigurationError, also for a folder or file of the policy that is not there.
    """
    if config.local_path is not None and not Path(config.local_path).is_dir():
        raise ConfigurationError(f"media.local_path: no folder '{config.local_path}'")
    try:
        fetcher = Fetcher(ca_file=config.ca_file)
    except (OSError, ssl.SSLError):
        raise ConfigurationError(
            f"media.ca_file: no certificates can be read from '{config.ca_file}'"
        ) from None
    return MediaReader(media_policies(config), fetcher)


def _from_data_url(target: Target, policy: MediaPolicy, param: str) -> bytes:
    return read_data_url(target.path, kind=policy.modality, max_bytes=policy.max_bytes, param=param)


def _from_file(target: Target, policy: MediaPolicy, param: str) -> bytes:
    return read_local_file(target.path, policy, param=param)
