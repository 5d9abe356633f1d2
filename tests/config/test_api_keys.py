"""Keys as they are configured: every way counts, what is malformed is refused and never quoted."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest

from appliance.config.api_keys import as_digest, gather_keys, key_digest, plain_keys
from appliance.config.compose import compose
from appliance.config.errors import ConfigurationError
from appliance.config.schema import ServerConfig, TenantConfig
from appliance.tasks.serve import warn_of_keys
from tests.conftest import Launch

SECRET = "s3cret-of-a-server"
HEX = hashlib.sha256(SECRET.encode()).hexdigest()


def server(file: Path | None = None, *keys: str) -> ServerConfig:
    told = [f"server.api_keys_file={file}"] if file else []
    config = compose(["model.path=x/y", *told]).config.server
    config.api_keys = list(keys)
    return config


def test_a_file_holds_a_key_a_line_beside_those_of_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(f"\ufeff# ours\r\n\r\none-of-them\r\n  sha256:{HEX}  \n#two\nthree".encode())
    config = server(file, "given")
    gather_keys(config)
    assert config.api_keys == ["given", "one-of-them", f"sha256:{HEX}", "three"]
    assert plain_keys(config) == ["given", "one-of-them", "three"]


def test_a_digest_lets_the_same_key_in() -> None:
    assert key_digest(SECRET) == key_digest(f"sha256:{HEX}") == key_digest(f"sha256:{HEX.upper()}")
    assert as_digest(SECRET) == as_digest(f"sha256:{HEX}") == f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "holds no key"),
        (b"# only\n\n   \n", "holds no key"),
        (f"fine\n{SECRET} # ours\n".encode(), "line 2 has white space"),
        (f"{SECRET}\tx".encode(), "line 1 has white space"),
        (f"{SECRET}ä".encode(), "line 1 has white space or characters that are not"),
        (SECRET.encode() + b"\xff", "line 1 has white space or characters that are not"),
        (SECRET.encode() + b"\x00", "line 1 has white space or characters that are not"),
        (f"sha256:{SECRET}".encode(), "line 1 begins with 'sha256:'"),
        (f"sha256:{HEX}0".encode(), "line 1 begins with 'sha256:'"),
        (f"sha256: {HEX}".encode(), "line 1 has white space"),
        (b"key\n" * (1 << 19), "is larger than"),
    ],
)
def test_a_file_that_is_not_keys_is_refused_without_being_quoted(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError) as refused:
        gather_keys(server(file))
    assert expected in str(refused.value)
    assert str(refused.value).startswith(f"server.api_keys_file: '{file}'")
    assert SECRET not in str(refused.value)
    assert HEX not in str(refused.value)


def test_what_is_no_file_to_read_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, expected in [
        ("none", "no such file"),
        ("", "is not a regular file"),
        ("pipe", "is not a regular file"),
        ("loop", "symbolic links"),
    ]:
        with pytest.raises(ConfigurationError, match=expected):
            gather_keys(server(tmp_path / name))
    link = tmp_path / "link"  # as a mounted secret is
    (tmp_path / "target").write_text(SECRET)
    link.symlink_to("target")
    config = server(link)
    gather_keys(config)
    assert config.api_keys == [SECRET]


def test_a_file_that_everybody_may_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text(SECRET)
    composed = compose(["model.path=x/y", f"server.api_keys_file={file}"])
    for mode, warned in ((0o600, False), (0o640, False), (0o644, True)):
        caplog.clear()
        file.chmod(mode)
        with caplog.at_level(logging.WARNING):
            warn_of_keys(composed, gather_keys(composed.config.server))
        assert ("every user of this machine may read" in caplog.text) == warned


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("[fine, '']", "server.api_keys[1] is empty"),
        (f"['{SECRET} x']", "server.api_keys[0] has white space"),
        (f"['{SECRET}é']", "server.api_keys[0] has white space or characters"),
        (f"['sha256:{SECRET}']", "server.api_keys[0] begins with 'sha256:'"),
        (f"['SHA256:{HEX}']", "server.api_keys[0] begins with 'sha256:'"),
        (f"[[{SECRET}]]", "server.api_keys[0] is not a key"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["task=plan"]])
def test_a_malformed_key_is_refused_without_being_quoted(
    told: str, expected: str, flags: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        compose(["model.path=x/y", f"server.api_keys={told}", *flags])
    assert str(refused.value).startswith(expected)
    assert SECRET not in str(refused.value)
    assert HEX not in str(refused.value)


@pytest.mark.parametrize(
    ("tenants", "expected"),
    [
        (f"one: {{keys: [{SECRET}]}}\n    two: {{keys: ['sha256:{HEX}']}}", "in common"),
        ("one: {keys: [shared-by-both]}", "server.api_keys and server.tenants.one.keys"),
        ("one: {keys: []}", "server.tenants.one.keys is empty"),
        (f"one: {{keys: {SECRET}}}", "server.tenants.one.keys must be list of str"),
        (f"one: {SECRET}", "server.tenants.one"),
    ],
)
def test_tenants_have_keys_of_their_own(mine: Path, tenants: str, expected: str) -> None:
    (mine / "recipe" / "team.yaml").write_text(
        "# @package _global_\nmodel: {path: x/y}\nserver:\n  api_keys: [shared-by-both]\n"
        f"  tenants:\n    {tenants}\n"
    )
    with pytest.raises(ConfigurationError) as refused:
        compose(["recipe=team"], [str(mine)])
    assert expected in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_key_of_the_file_that_is_a_tenants_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"first\n{SECRET}\n")
    config = server(file)
    config.tenants = {"one": TenantConfig(keys=[f"sha256:{HEX}"])}
    with pytest.raises(ConfigurationError, match=r"api_keys_file and server\.tenants\.one\.keys"):
        gather_keys(config)


def test_a_server_does_not_start_without_its_file(launch: Launch) -> None:
    ran = launch("recipe=demo", "server.api_keys_file=/not/there")
    assert ran.returncode == 2
    assert ran.stderr == (
        "appliance: server.api_keys_file: cannot read '/not/there': no such file or directory\n"
    )
