"""What people type first, in the words of other servers and of habit, and what to type instead.

One grammar is enough: nothing here is accepted that `key=value` could not say. What was meant is
told as the whole line to type.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from appliance.config.check import Key, keys
from appliance.config.errors import ConfigurationError, suggestion
from appliance.config.masking import is_secret, masked_arguments

ANY, NONE, WORD = re.compile("(?s:.*)"), re.compile("(?!)"), re.compile(r"[\w-]+")
FLAGS_HERE = {  # with what may follow them
    **dict.fromkeys(("--config-dir", "-cd", "--cfg", "-c", "--package", "-p"), ANY),
    **dict.fromkeys(("--help", "-h", "--version", "--resolve", "--shell-completion", "-sc"), NONE),
    **dict.fromkeys(("--info", "-i"), WORD),
}
VERBS: dict[str, list[str]] = {
    **{verb: [] for verb in ("serve", "run", "start", "up", "launch")},
    "plan": ["task=plan"],
    "compile": ["task=kernels"],
    "version": ["--version"],
}
LISTING = ("list", "ls", "recipes", "models")
KEY_FILE = "server.api_keys_file=FILE"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FOREIGN = {  # of vLLM, SGLang, TGI, llama.cpp, and what anybody would try
    "m": "model.path",
    "model": "model.path",
    "model-path": "model.path",
    "model-id": "model.path",
    "served-model-name": "model.name",
    "alias": "server.aliases",
    "max-model-len": "model.max_len",
    "max-total-tokens": "model.max_len",
    "context-length": "model.max_len",
    "ctx-size": "model.max_len",
    "device": "engine",
    "d": "engine",
    "bind": "server.host",
    "address": "server.host",
    "socket": "server.uds",
    "api-key": "server.api_keys",
    "allowed-origins": "server.cors_origins",
    "api-prefix": "server.root_path",
    "enable-log-requests": "server.log_requests",
    "allow-origins": "server.cors_origins",
    "allowed-media-domains": "media.allowed_domains",
    "allowed-local-media-path": "media.local_path",
    "download-dir": "cache.folder",
    "cache-dir": "cache.folder",
    "tensor-parallel-size": "parallelism.tensor",
    "tp": "parallelism.tensor",
    "tp-size": "parallelism.tensor",
    "num-shard": "parallelism.tensor",
    "gpu-memory-utilization": "engine.gpu_memory_fraction",
    "mem-fraction-static": "engine.gpu_memory_fraction",
    "max-num-seqs": "engine.max_sequences",
    "max-running-requests": "engine.max_sequences",
    "max-num-batched-tokens": "engine.max_tokens_per_step",
    "kv-cache-dtype": "engine.kv_dtype",
    "block-size": "engine.page_size",
    "log-level": "logging.level",
    "temp": "sampling.temperature",
}


def check_words(argv: Sequence[str], recipes: Callable[[], Collection[str]]) -> None:
    """Raise ConfigurationError with the line to type where an argument is in other words.

    What nobody could know the meaning of is left to those who read the line after this.
    """
    pieces = list(_pieces(argv))
    if all(kind in ("flag", "override") for kind, _, _ in pieces):
        return
    told: list[str] = []
    meant: list[str] = []
    for kind, text, value in pieces:
        if kind in ("flag", "override"):
            meant.append(text)
            continue
        known = recipes()
        found = _of_flag(text, value, known) if kind == "foreign" else _of_word(text, known)
        if found is None:
            return
        told.append(text)
        meant += found
    line = "appliance" if told[0] in LISTING else _line(meant)
    raise ConfigurationError(f"cannot read '{told[0]}': type {line}")


def in_full(name: str, value: str) -> str | None:
    """`key=value` as it has to be typed, where a name ends as only one key does."""
    key = _key(name)
    if key is None:
        return None
    if is_secret(key.name):
        return f"'{key.name}=[KEY]' or, not seen by others, {KEY_FILE}"
    return shlex.quote(masked_arguments([f"{key.name}={_bracketed(key, value)}"])[0])


def _bracketed(key: Key, value: str) -> str:
    plain = not key.type.startswith("list") or value == "null" or value.startswith(("[", "$"))
    return value if plain else f"[{value}]"


def _line(meant: Sequence[str]) -> str:
    named = any(text.partition("=")[0] in ("recipe", "model.path") for text in meant)
    words = [*([] if named or "--version" in meant else ["recipe=NAME"]), *masked_arguments(meant)]
    return " ".join(["appliance", *map(shlex.quote, words)])


def _pieces(argv: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Arguments with what they are: flag, override, word, or a foreign flag with its value."""
    rest = list(argv)
    while rest:
        text = rest.pop(0)
        name, sign, value = text.partition("=")
        if name in FLAGS_HERE:
            yield "flag", text, ""
            if not sign and rest and FLAGS_HERE[name].fullmatch(rest[0]):
                yield "flag", rest.pop(0), ""
        elif text.startswith("-"):
            if not sign and rest and not rest[0].startswith("-") and "=" not in rest[0]:
                value = rest.pop(0)
            yield "foreign", name, value
        elif sign or text.startswith("~"):
            yield "override", text, ""
            depth = _open(value)
            while (depth > 0 or not value) and rest:  # a shell cut it at a blank
                value = rest[0]
                depth += _open(value)
                yield "override", rest.pop(0), ""
        else:
            yield "word", text, ""


def _open(text: str) -> int:
    return sum(text.count(one) for one in "[{") - sum(text.count(one) for one in "]}")


def _of_flag(flag: str, value: str, recipes: Collection[str]) -> list[str] | None:
    """What a flag of other servers is here, or None."""
    name = flag.lstrip("-")
    if name in ("recipe", "config", "f") and value:
        return _of_word(value, recipes)
    if FOREIGN.get(name) == "engine":
        return ["engine=cpu" if value == "cpu" else "engine=cuda"]
    key = _key(FOREIGN.get(name, name.replace("-", "_")))
    if key is None:
        return None
    if key.name == "model.path":
        return _of_word(value, recipes) or ["model.path=FOLDER"]
    if is_secret(key.name):
        return [KEY_FILE]
    if not value:
        value = "true" if key.type == "bool" else "VALUE"
    return [f"{key.name}={_bracketed(key, value)}"]


def _of_word(text: str, recipes: Collection[str]) -> list[str] | None:
    """What a word without a key means, or None."""
    if text in VERBS or text in LISTING:
        return VERBS.get(text, [])
    path = Path(text)
    name = path.stem if path.suffix in (".yaml", ".yml") else text
    if name in recipes:
        return [f"recipe={name}"]
    if path.suffix in (".yaml", ".yml"):
        above = path.parent.parent if path.parent.name == "recipe" else path.parent
        return ["--config-dir", str(above), f"recipe={name}"]
    if path.suffix == ".gguf" or path.is_dir() or HUB_ID.fullmatch(text):
        return [f"model.path={text}"]
    near = re.search(r"'(.+)'", suggestion(text, recipes))
    return [f"recipe={near[1]}"] if near else None


def _key(name: str) -> Key | None:
    """The key of that name, or the only one whose last part it is."""
    known = list(keys())
    exact = [key for key in known if key.name == name]
    last = [key for key in known if key.name.rpartition(".")[2] == name]
    found = exact or last
    return found[0] if len(found) == 1 else None
