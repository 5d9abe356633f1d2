"""No client, file or library writes a line of the log, and none leaves a secret in one."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
import unicodedata

import pytest

from engine.device.log_lines import HumanFormatter, JsonFormatter, LineFormatter, escaped

FORGED = '12:00:00 INFO    request status=200 path="/admin"'
ODD = [
    f"x\n{FORGED}",
    f"x\r{FORGED}",
    f"x\u2028{FORGED}",
    f"x\u2029{FORGED}",
    f"x\x85{FORGED}",
    f"x\v{FORGED}",
    "x\x1b[2J\x1b[31mred",
    "x\x9b31m",
    "x\x7f\x08\x08\x08",
    "x\u202egnp.exe\u202c",
    "x\u2066\u2069\u200f\u061c",
    "x\ud800",
    "x\0y",
    'x" status=200',
    "",
]
FORMATTERS = [HumanFormatter(), JsonFormatter()]


def record(message: str, *arguments: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("engine.x", logging.INFO, "x.py", 1, message, arguments, None)
    made.fields = fields
    return made


def harmless(line: str) -> bool:
    """Whether a viewer shows all of it on one line, in the order that it has."""
    return not any(unicodedata.category(one)[0] in "CZ" and one != " " for one in line)


@pytest.mark.parametrize("formatter", FORMATTERS, ids=["human", "json"])
@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_a_record_is_one_line_whatever_is_in_it(formatter: logging.Formatter, text: str) -> None:
    for made in (record(text), record("x %s", text), record("request", path=text, status=404)):
        line = formatter.format(made)
        assert harmless(line)
        line.encode()  # no lone surrogate
        if isinstance(formatter, JsonFormatter):
            assert json.loads(line)["logger"] == "engine.x"
    line = FORMATTERS[0].format(record("request", path=text, status=404))
    assert line.count(" status=404") == 1
    assert line.endswith(" status=404")
    assert line.count(" status=200") == 0 or '\\" status=200' in line or f'"{text[:1]}' in line


def test_the_check_for_harmless_lines_finds_what_is_not() -> None:
    assert harmless("plain – text")
    assert not any(harmless(text) for text in ODD if not text.isprintable())
    plain = logging.Formatter("%(message)s")
    assert not harmless(plain.format(record(ODD[0])))


@pytest.mark.parametrize("formatter", FORMATTERS, ids=["human", "json"])
def test_a_traceback_forges_nothing_and_shows_no_secret(formatter: logging.Formatter) -> None:
    address = "https://me:s3cret@hub.example/a/s3cret?X-Amz-Signature=s3cret"
    try:
        try:
            raise ValueError(f"403 for {address}\n{FORGED}\u2028\x1b[31m")
        except ValueError as error:
            raise RuntimeError("Authorization: Bearer s3cret, /a?token=s3cret") from error
    except RuntimeError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    text = formatter.format(made)
    first, *rest = text.split("\n")
    assert "s3cret" not in text
    assert "hub.example" in text
    assert "ValueError" in text
    assert all(harmless(line) for line in (first, *rest))
    if isinstance(formatter, JsonFormatter):
        assert rest == []
        assert "RuntimeError" in json.loads(first)["traceback"]
    else:
        assert all(line.startswith("  | ") for line in rest)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("listening on http://127.0.0.1:80", "listening on http://127.0.0.1:80"),
        ("at http://h:1/.", "at http://h:1/."),
        ("(https://u:p@h.example/a/b?c=d)", "(https://h.example/…)"),
        ("GET '/api/models?token=abc' failed", "GET '/api/models?…' failed"),
        ("a hub id (owner/name)?", "a hub id (owner/name)?"),
        ("data:image/png;base64,AAAA", "data:…"),
        ("Basic YWJj", "***"),
        ("hf_abcdefgh12345678", "***"),
        ("unix:/run/x.sock", "unix:/run/x.sock"),
        ("/folder/file.py:12", "/folder/file.py:12"),
    ],
)
def test_of_a_url_its_host_is_shown(text: str, shown: str) -> None:
    assert LineFormatter().clean(text) == shown


@pytest.mark.parametrize("piece", ["a.", "/", "a:", "?", "data:", "http://", "bearer ", "@", "hf_"])
def test_cleaning_takes_linear_time(piece: str) -> None:
    text = piece * (1 << 16)
    begun = time.process_time()
    HumanFormatter().format(record("request", path=text))
    assert time.process_time() - begun < 1


def test_a_value_is_bounded() -> None:
    assert len(HumanFormatter().format(record("request", path="x" * 65536))) < 3000


def test_known_secrets_are_hidden_in_messages_fields_and_tracebacks() -> None:
    formatter = JsonFormatter(lambda text: text.replace("s3cret", "***"))
    made = record("a s3cret", path="/s3cret")
    try:
        raise ValueError("s3cret")
    except ValueError:
        made.exc_info = sys.exc_info()
    text = formatter.format(made)
    assert "s3cret" not in text
    assert text.count("***") == 4  # the traceback shows the line of code too
    assert "ValueError: ***" in text


@pytest.mark.parametrize("form", ["json", "human"])
def test_warnings_and_what_nobody_catches_are_logged_alike(form: str) -> None:
    code = (
        "import logging, threading, warnings\n"
        "from engine.device.log_lines import LogStyle, configure\n"
        f"configure(LogStyle(logging.INFO, {form == 'json'}))\n"
        "assert LogStyle.current() == LogStyle(logging.INFO, "
        f"{form == 'json'})\n"
        "warnings.warn('odd\\nline')\n"
        "thread = threading.Thread(target=lambda: 1 / 0)\n"
        "thread.start(); thread.join()\n"
        "raise ValueError('see http://h/?s3cret')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "s3cret" not in ran.stderr
    for expected in ("odd", "ZeroDivisionError", "ValueError"):
        assert expected in ran.stderr
    for line in ran.stderr.splitlines():
        if form == "json":
            assert json.loads(line)["level"] in ("warning", "critical")
        else:
            assert line[2:3] == ":" or line.startswith("  | ")


def test_printable_text_is_left_alone() -> None:
    assert escaped("Grüße, 世界 – ok") == "Grüße, 世界 – ok"


LIBRARIES = [
    "uvicorn.error",
    "asyncio",
    "httpcore.connection",
    "httpx",
    "httpx2",  # named by nobody when it came
    "huggingface_hub.file_download",
    "urllib3.connectionpool",
    "filelock",
    "a_library_of_next_year",
    "appliances",  # no part of ours
    "engineering.logs",
    "root",
]


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.ERROR])
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_says_warnings_alone_whatever_it_sets(name: str, level: int) -> None:
    program = (
        "import logging\n"
        "from engine.device.log_lines import LogStyle, configure\n"
        f"configure(LogStyle({level}, False))\n"
        f"theirs = logging.getLogger({name!r})\n"
        "theirs.info('GET https://h/f?X-Amz-Signature=one')\n"
        "theirs.setLevel(logging.DEBUG)\n"
        "theirs.debug('GET two')\n"
        "theirs.warning('three')\n"
        "theirs.error('four')\n"
        "for ours in ('appliance', 'appliance.media', 'engine.core'):\n"
        "    logging.getLogger(ours).info('five')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert "one" not in ran.stderr
    assert "two" not in ran.stderr
    assert "four" in ran.stderr
    assert ran.stderr.count("five") == (3 if level <= logging.INFO else 0)
