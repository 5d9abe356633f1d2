"""From a recipe's keys to policies, and from the URLs of a request to images."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.config.errors import ConfigurationError
from appliance.config.schema import MediaConfig
from appliance.errors import ApplianceError
from appliance.media.configured import media_policies
from appliance.media.fetch import Fetcher
from appliance.media.policy import MediaPolicy
from appliance.media.reader import MediaReader, reader_for
from appliance.recipe import compose_recipe
from tests.media.origin import Call, content, serving
from tests.media.policies import check_url, media_policy


def configured(*overrides: str) -> MediaConfig:
    return compose_recipe(["model.path=/nowhere", *overrides]).config.media


def quoted(key: str, value: str) -> str:
    return f'{key}="{value}"'


def test_by_default_only_data_urls_are_taken() -> None:
    policy = media_policies(configured())["image"]
    assert policy == media_policy()
    assert policy.allowed_domains == ()
    assert (policy.allow_private, policy.redirects, policy.local_path) == (False, "deny", None)


def test_every_key_reaches_the_policy() -> None:
    config = configured(
        quoted("media.allowed_domains", "[*.example.org:8443]").replace('"', ""),
        "media.allow_private=true",
        "media.redirects=same_host",
        "media.max_redirects=7",
        "media.schemes=[https]",
        "media.local_path=/srv/media",
        quoted("media.proxy", "http://proxy:3128"),
        "media.image.timeout=1.5",
        "media.image.max_bytes=1000",
    )
    assert media_policies(config)["image"] == media_policy(
        modality="image",
        allowed_domains=("*.example.org:8443",),
        allow_private=True,
        redirects="same_host",
        max_redirects=7,
        schemes=("https",),
        local_path="/srv/media",
        proxy="http://proxy:3128",
        timeout=1.5,
        max_bytes=1000,
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (quoted("media.allowed_domains", "https://example.org"), "media.allowed_domains"),
        ("media.allowed_domains=['https://example.org']", "without scheme"),
        ("media.allowed_domains=['.example.org']", "*.example.org"),
        ("media.allowed_domains=['ex*.org']", "media.allowed_domains"),
        ("media.allowed_domains=['127.1']", "media.allowed_domains"),
        ("media.redirects=follow", "media.redirects"),
        ("media.redirects=samehost", "same_host"),
        ("media.max_redirects=0", "media.max_redirects"),
        ("media.schemes=[file]", "media.schemes"),
        ("media.schemes=[htps]", "https"),
        ("media.local_path=relative/folder", "media.local_path"),
        (quoted("media.proxy", "https://proxy:3128"), "media.proxy"),
        (quoted("media.proxy", "http://user:pass@proxy:3128"), "media.proxy"),
        (quoted("media.proxy", "http://proxy"), "media.proxy"),
        (quoted("media.proxy", "http://proxy:3128/x"), "media.proxy"),
        ("media.image.timeout=0", "media.image.timeout"),
        ("media.allowed_domain=[a.org]", "media.allowed_domains"),
    ],
)
def test_a_wrong_value_stops_the_start(override: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configured(override)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_worked_policies_of_the_documentation_compose(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "media.md").read_text(encoding="utf-8")
    recipes = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "recipe").mkdir()
    policies = []
    for number, recipe in enumerate(recipes):
        (tmp_path / "recipe" / f"worked{number}.yaml").write_text(recipe)
        argv = ["model.path=/nowhere", f"recipe=worked{number}"]
        policies.append(media_policies(compose_recipe(argv, [str(tmp_path)]).config.media)["image"])
    closed, cdn, internet = policies

    def public(host: str) -> Sequence[str]:
        return ["93.184.215.14"]

    for url, allowed in (
        ("https://images.example.com/a", [cdn, internet]),
        ("https://eu.cdn.example.com/a", [cdn, internet]),
        ("http://images.example.com/a", [internet]),
        ("https://elsewhere.test/a", [internet]),
        ("https://localhost/a", []),
        ("file:///etc/passwd", []),
        ("data:image/png;base64,AAAA", [closed, cdn, internet]),
    ):
        for policy in policies:
            if policy in allowed:
                check_url(url, policy, public)
            else:
                with pytest.raises(ApplianceError):
                    check_url(url, policy, public)


def test_a_missing_folder_or_file_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    reader_for(configured(f"media.local_path={tmp_path}"))
    for override in (
        f"media.local_path={tmp_path}/none",
        f"media.ca_file={tmp_path}/none.pem",
        f"media.ca_file={tmp_path}/empty.pem",
    ):
        with pytest.raises(ConfigurationError, match=r"media\.(local_path|ca_file)"):
            reader_for(configured(override))


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


async def loopback(host: str) -> Sequence[str]:
    return ["127.0.0.1"]


async def read(urls: list[str], policy: MediaPolicy, pool: Executor) -> list[bytes]:
    reader = MediaReader({"image": policy}, Fetcher(resolve=loopback))
    params = [f"messages[0].content[{place}].image_url.url" for place in range(len(urls))]
    targets = [reader.check(url, "image", param) for url, param in zip(urls, params, strict=True)]
    try:
        found = await asyncio.gather(
            *(
                reader.read(target, "image", param, pool)
                for target, param in zip(targets, params, strict=True)
            )
        )
        return [one.data for one in found]
    finally:
        await reader.close()


def test_items_come_from_anywhere_allowed_all_at_once(pool: Executor, tmp_path: Path) -> None:
    data = bytes(range(256))
    (tmp_path / "a.png").write_bytes(data)
    asked: list[Call] = []
    all_asked = asyncio.Event()

    async def once_all_asked(call: Call) -> None:
        asked.append(call)
        if len(asked) == 8:
            all_asked.set()
        await all_asked.wait()
        await call.answer(data)

    async def scenario() -> list[bytes]:
        async with serving({"/a": once_all_asked}) as origin:
            policy = media_policy(
                allowed_domains=("origin.test:*",), allow_private=True, local_path=str(tmp_path)
            )
            remote = [f"http://origin.test:{origin.port}/a"] * 8
            inline = "data:image/png;base64," + base64.b64encode(data).decode()
            return await read([inline, *remote, f"file://{tmp_path}/a.png"], policy, pool)

    assert asyncio.run(scenario()) == [data] * 10


def test_the_limit_of_bytes_is_the_same_wherever_an_image_comes_from(
    pool: Executor, tmp_path: Path
) -> None:
    data = bytes(range(256))
    (tmp_path / "a.png").write_bytes(data)

    async def scenario() -> None:
        async with serving({"/a": content(data)}) as origin:
            inline = "data:image/png;base64," + base64.b64encode(data).decode()
            sources = (inline, f"file://{tmp_path}/a.png", f"http://o.test:{origin.port}/a")
            for source in sources:
                for slack in (0, -1):
                    policy = media_policy(
                        allowed_domains=("o.test:*",),
                        allow_private=True,
                        local_path=str(tmp_path),
                        max_bytes=len(data) + slack,
                    )
                    if slack == 0:
                        assert await read([source], policy, pool) == [data]
                        continue
                    with pytest.raises(ApplianceError) as caught:
                        await read([source], policy, pool)
                    assert (caught.value.status, caught.value.code) == (400, "media_too_large")

    asyncio.run(scenario())
