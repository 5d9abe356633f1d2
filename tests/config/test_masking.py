"""What is shown of command lines and recipes that hold secrets."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from appliance.config.check import keys
from appliance.config.compose import compose, compose_node, hydras_overrides
from appliance.config.errors import ConfigurationError
from appliance.config.masking import SECRETS, is_secret, masked_arguments, redacted

SECRET = "s3cret-of-a-server"
DIGEST = f"sha256:{hashlib.sha256(SECRET.encode()).hexdigest()}"


def test_a_key_is_secret_or_resembles_one_or_is_shown() -> None:
    for name in (
        *SECRETS,
        "server.tenants.team",
        "server.tenants",
        "++server.api_keys",
        "server.api_keys.0",
        "server.api_key",
        "server.apikeys",
        "--api-keys",
        "api_keys",
        "server.tenant.team.keys",
        "hf_token",
        "media.proxy_password",
    ):
        assert is_secret(name), name
    for key in keys():
        assert is_secret(key.name) == (key.name in SECRETS), key.name
    for name in ("media.imag.limit", "server.prot", "engine.page_sise", "recipe", "task"):
        assert not is_secret(name), name


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ([f"server.api_keys=[{SECRET}]"], ["server.api_keys=***"]),
        (["server.api_keys=[sk", SECRET], ["server.api_keys=***", "***"]),
        (["server.api_keys=[a,", f"{SECRET}]", "server.port=1"], None),
        (["server.api_keys=", SECRET, "server.port=1"], None),
        (["--api-key", SECRET], ["--api-key", "***"]),
        ([f"--server.api_keys={SECRET}"], ["--server.api_keys=***"]),
        ([f"server={{api_keys: [{SECRET}]}}"], ["server=***"]),
        ([f"media.proxy=http://me:{SECRET}@host:1"], ["media.proxy=http://***@host:1"]),
        ([f"server.api_keys=['${{oc.env:KEY,{SECRET}}}']"], ["server.api_keys=***"]),
    ],
)
def test_plain_keys_of_a_command_line_are_hidden(given: list[str], shown: list[str] | None) -> None:
    masked = masked_arguments(given)
    assert SECRET not in " ".join(masked)
    assert len(masked) == len(given)
    assert shown is None or masked == shown
    assert given[-1] != "server.port=1" or masked[-1] == "server.port=1"


@pytest.mark.parametrize(
    "text",
    [
        "server=container",
        "server.port=8000",
        "server.api_keys=['${oc.env:KEY}']",
        "server.api_keys=${oc.decode:${oc.env:KEYS}}",
        f"server.api_keys=['{DIGEST}']",
        "server.api_keys=[]",
        "server.api_keys_file=/run/keys",
        "server.tenants.team.requests_per_minute=3",
        "engine.max_tokens_per_step=512",
        "recipe=demo",
    ],
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert masked_arguments([text]) == [text]


@pytest.mark.parametrize(
    "text",
    [
        f"server.api_keys=[{SECRET}",
        f"server.api_keys={SECRET}",
        f"server.api_keys={{a: {SECRET}}}",
        f"server.api_keys=[[{SECRET}]]",
        f"server.api_keys=['${{{SECRET}}}']",
        f"server.api_key={SECRET}",
        f"server.apikeys=[{SECRET}]",
        f"api_keys={SECRET}",
        f"+server.api_key={SECRET}",
        f"~server.api_keys={SECRET}",
        f"server.api_keys={SECRET},b",
        f"server={{api_keys: {SECRET}}}",
        f"server.tenants={SECRET}",
        f"server.tenants.team={SECRET}",
        f"server.tenants.team.keys=[{SECRET}]",
        f"+server.tenants.team.keys=[{SECRET}]",
        f"hydra.token={SECRET}",
    ],
)
def test_no_error_of_composing_quotes_a_key(text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        compose(["recipe=demo", text])
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) > 20


@pytest.mark.parametrize(
    "text",
    [
        f"server: {{api_keys: {SECRET}}}",
        f"server: {{api_keys: [{{a: {SECRET}}}]}}",
        f"server: {{api_key: [{SECRET}]}}",
        f"server: {{api_keys: [*{SECRET}]}}",
        f"server: {{api_keys: [!{SECRET} x]}}",
        f"server: {{api_keys: ['${{{SECRET}}}']}}",
        f"server: {{tenants: {{team: {{key: [{SECRET}]}}}}}}",
        f"server: {{tenants: {{team: {SECRET}}}}}",
        f"api_keys: [{SECRET}]",
    ],
)
def test_no_error_of_a_recipe_quotes_a_key(mine: Path, text: str) -> None:
    (mine / "recipe" / "bad.yaml").write_text(f"# @package _global_\nmodel: {{path: x}}\n{text}\n")
    with pytest.raises(ConfigurationError) as refused:
        compose(["recipe=bad"], [str(mine)])
    assert SECRET not in str(refused.value)


def test_what_an_error_quotes_all_the_same_is_taken_out() -> None:
    arguments = [f"server.api_keys=[{SECRET},short]", f"media.proxy=http://me:{SECRET}x@host:1"]
    message = f"In 'x': [{SECRET}] of {arguments[0]} and {arguments[1]}, short"
    assert SECRET not in redacted(message, arguments)
    assert redacted("nothing of that, short", arguments) == "nothing of that, short"


def test_what_is_printed_lets_the_same_keys_in(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", SECRET)
    (mine / "recipe" / "team.yaml").write_text(
        "# @package _global_\nmodel: {path: x/y}\nserver:\n"
        f"  api_keys: ['${{oc.env:KEY}}', '${{oc.env:NONE,{SECRET}-default}}', {DIGEST[:-1]}0]\n"
        "  tenants:\n    team: {keys: [team-key-one], concurrent: 3}\n"
    )
    node = compose_node(["recipe=team"], [mine])
    composed = compose(["recipe=team"], [str(mine)])
    printed = yaml.safe_load(composed.yaml)["server"]
    assert printed["api_keys"][0] == "${oc.env:KEY}"
    assert SECRET not in composed.yaml
    assert "team-key-one" not in composed.yaml
    (mine / "recipe" / "frozen.yaml").write_text(composed.yaml)
    again = compose(["recipe=frozen", "model.name=team"], [str(mine)])
    assert again.config.server.tenants["team"].concurrent == 3
    assert again.secret_variables == ("KEY",)
    assert composed.secret_variables == ("KEY", "NONE")
    assert yaml.safe_load(again.yaml)["server"] == printed
    for resolved in (True, False):
        told = hydras_overrides(node, ["recipe=team"], resolved)
        assert SECRET not in str(told)
        assert (DIGEST in str(told)) == resolved


def test_arguments_are_overwritten_and_the_program_still_knows_them() -> None:
    """The control is the argument beside them, which stays."""
    code = (
        "import sys\n"
        "from appliance import argument_memory\n"
        "given = list(sys.argv)\n"
        "argument_memory.overwrite_secrets()\n"
        "print(repr(open('/proc/self/cmdline', 'rb').read()), sys.argv, sys.orig_argv)\n"
        "assert len(given[1]) > 30\n"
    )
    told = [f"server.api_keys=[{SECRET}]", "server.port=1", "server.api_keys=a", "more"]
    ran = subprocess.run(
        [sys.executable, "-c", code, *told], capture_output=True, text=True, check=True
    )
    assert SECRET not in ran.stdout
    assert r"server.api_keys=***\x00" in ran.stdout
    assert r"\x00server.port=1\x00server.api_keys=*\x00more\x00" in ran.stdout


def test_hiding_takes_no_time() -> None:
    long = ["server.api_keys=[" + "a," * 50_000 + "]", "server." + "x." * 1000 + "y=1"]
    begun = time.process_time()
    masked_arguments(long)
    assert time.process_time() - begun < 2
