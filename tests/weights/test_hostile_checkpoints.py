"""What is loaded is data: a checkpoint that is broken, or meant to harm, is one line of ours."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import resource
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.config.compose import compose
from appliance.config.errors import ConfigurationError
from appliance.config.schema import Config
from appliance.generation.sampling_defaults import sampling_defaults
from appliance.planning import plan_recipe
from appliance.prompt.template import ChatTemplate
from appliance.prompt.tokenizer import Tokenizer
from appliance.prompt.tokenizer_file import TokenizerFailed, repeats_repetition
from appliance.weights.gguf_checkpoint import write_checkpoint
from appliance.weights.source import resolve
from engine.errors import EngineError
from engine.models.documents import CheckpointBroken
from engine.models.end_tokens import end_tokens
from engine.models.loader import load_model
from engine.models.registry import family_for
from tests.checkpoints import WRITERS
from tests.weights.test_gguf_checkpoint import write_gguf

FAMILIES = ("llama", "qwen2_vl", "llava", "gemma3", "ultravox")
SECONDS = 20.0  # on a busy machine; what hangs takes for ever
OURS = (EngineError, ConfigurationError)
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    -(10**9),
    10**6,
    10**9,
    2**63,
    10**30,
    0.5,
    -0.0,
    1e308,
    "",
    "5",
    "x" * 10_000,
    "../../etc/passwd",
    [],
    [[[]]],
    ["a", 1, None],
    {},
    {"a": {"b": []}},
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("whole")
    return {name: WRITERS[name](root / name) for name in FAMILIES}


@pytest.fixture
def broken(whole: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a checkpoint, to be broken."""

    def copied(name: str = "llama") -> Path:
        return Path(shutil.copytree(whole[name], tmp_path / name))

    return copied


@cache
def composed() -> Config:
    """A recipe of nothing, composed once: that takes longer than reading a checkpoint."""
    return compose(["model.path=/nowhere", "engine.kv_cache_gb=0.1"]).config


def configured(folder: Path) -> Config:
    config = copy.deepcopy(composed())
    config.model.path, config.cache.folder = str(folder), str(folder.parent / "cache")
    return config


def read_all(folder: Path) -> None:
    """What a start reads before it loads the weights, in its order."""
    config = configured(folder)
    found = resolve(config.model, config.cache)
    family = family_for(found)
    limits = {"image": config.media.image, "video": config.media.video, "audio": config.media.audio}
    for modality, limit in limits.items():
        limit.limit = int(modality in family.available)
    plan_recipe(config, found)
    end_tokens(found)
    sampling_defaults(config.sampling, found)
    with contextlib.suppress(ValueError):  # of ours, shown as it is
        ChatTemplate(None, Tokenizer(found), family)


def refused(folder: Path) -> str:
    started = time.monotonic()
    with pytest.raises(OURS) as told:
        read_all(folder)
    assert time.monotonic() - started < SECONDS
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 1000
    return str(told.value)


def test_they_are_read_as_they_are(whole: dict[str, Path]) -> None:
    for folder in whole.values():
        read_all(folder)


# every document, any place in it


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
        for name, inner in pairs[:40]:
            yield (*path, name)
            yield from places(inner, (*path, name))


def mutated(document: Any, path: tuple[Any, ...], value: Any, how: str) -> Any:
    changed = copy.deepcopy(document)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    if how == "gone":
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return changed


@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_value_anywhere_is_read_or_refused_in_a_line(
    family: str, data: st.DataObject, whole: dict[str, Path], tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("mutated") / family
    folder.mkdir()
    for file in whole[family].iterdir():
        (folder / file.name).symlink_to(file) if file.suffix == ".safetensors" else shutil.copy(
            file, folder
        )
    documents = sorted(file.name for file in folder.glob("*.json"))
    for _ in range(data.draw(st.integers(1, 2))):
        path = folder / data.draw(st.sampled_from(documents))
        document = json.loads(path.read_text())
        place = data.draw(st.sampled_from(list(places(document))))
        how = data.draw(st.sampled_from(["changed", "changed", "gone"]))
        changed = mutated(document, place, data.draw(st.sampled_from(ODD)), how)
        path.write_text(json.dumps(changed))
    with contextlib.suppress(*OURS):
        read_all(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"5",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": 1e400}',
        b'{"a": -Infinity}',
        b'{"a": NaN}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\\ud800"',
    ],
)
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
)
def test_what_is_no_json_object_is_named(
    name: str, content: bytes, broken: Callable[[str], Path]
) -> None:
    folder = broken("llama")
    (folder / name).write_bytes(content)
    assert name in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_a_file_of_a_gigabyte_is_not_read(name: str, broken: Callable[[str], Path]) -> None:
    folder = broken("qwen2_vl")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (folder / name).open("wb") as file:
        file.truncate(1 << 30)
    assert f"{name} is larger than" in refused(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
        "chat_template.jinja",
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "circle", "nowhere"])
def test_what_is_no_regular_file_is_not_waited_for(
    name: str, kind: str, broken: Callable[[str], Path]
) -> None:
    folder = broken("llama")
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        targets = {"device": "/dev/zero", "circle": name, "nowhere": "/no/such/file"}
        (folder / name).symlink_to(targets[kind])
    assert refused(folder)


def test_text_files_are_no_links_out_of_the_folder(
    broken: Callable[[str], Path], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{{ 'what nobody may see' }}")
    folder = broken("llama")
    (folder / "chat_template.jinja").symlink_to(secret)
    line = refused(folder)
    assert "chat_template.jinja is a link out of its folder" in line
    assert "nobody" not in line


def test_snapshots_of_the_hub_are_links_and_are_read(
    whole: dict[str, Path], tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(whole["llama"].iterdir()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    read_all(snapshot)
    weights = tmp_path / "elsewhere.safetensors"
    (snapshot / "model.safetensors").resolve().rename(weights)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(weights)  # as people keep them on other disks
    read_all(snapshot)


@pytest.mark.parametrize(
    "file",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "../model.safetensors",
        "a/b.safetensors",
        "",
        "pytorch_model.bin",
        5,
        None,
        ["model.safetensors"],
        "a\0.safetensors",
    ],
)
def test_an_index_names_files_beside_it_and_nothing_else(
    file: Any, broken: Callable[[str], Path]
) -> None:
    folder = broken("llama")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": file}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "no safetensors file beside it" in refused(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": None}])
def test_an_index_without_names_is_refused(index: Any, broken: Callable[[str], Path]) -> None:
    folder = broken("llama")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "weight_map" in refused(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_refused_by_name(name: str, broken: Callable[[str], Path]) -> None:
    folder = broken("llama")
    (folder / "model.safetensors").rename(folder / name)
    assert f"{name}, a pickle" in refused(folder)


def test_code_beside_a_checkpoint_is_never_run(
    broken: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ran = broken("llama"), tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()\nclass Anything:\n    pass\n"
    for name in ("evil", "configuration_evil", "modeling_evil", "tokenization_evil"):
        (folder / f"{name}.py").write_text(code)
    entry = "evil.Anything"
    kinds = ["AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor"]
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        document = json.loads((folder / name).read_text())
        document |= {"auto_map": dict.fromkeys(kinds, entry), "custom_generate": "evil"}
        document |= {"trust_remote_code": True}
        if name == "tokenizer_config.json":
            document |= {
                "tokenizer_class": "Anything",
                "auto_map": {"AutoTokenizer": [entry, entry]},
            }
        (folder / name).write_text(json.dumps(document))
    read_all(folder)
    with contextlib.suppress(ValueError):  # where nobody has registered our attention
        load_model(str(folder), "float32", "cpu")
    (folder / "tokenizer.json").unlink()
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("whether it may run was asked"))
    with pytest.raises(CheckpointBroken):
        Tokenizer(folder)
    assert not ran.exists()


# sizes


@pytest.mark.parametrize("family", ["llama", "qwen2_vl", "llava", "gemma3"])
@pytest.mark.parametrize("part", ["text", "vision"])
@pytest.mark.parametrize("value", [-1, 0, 10**9, 10**18, 1.5, "64", [64], True])
def test_sizes_are_whole_numbers_in_range_and_those_of_the_weights(
    family: str, part: str, value: Any, broken: Callable[[str], Path]
) -> None:
    folder = broken(family)
    config = json.loads((folder / "config.json").read_text())
    if part == "vision" and family == "llama":
        pytest.skip("it has no tower")
    inner = config.get(f"{part}_config", config)
    names = ["hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "head_dim"]
    names += ["intermediate_size", "num_key_value_heads"]
    names = ["embed_dim", "depth", "patch_size", "image_size"] if part == "vision" else names
    for name in names:
        if name in inner:
            changed = copy.deepcopy(config)
            changed.get(f"{part}_config", changed)[name] = value
            (folder / "config.json").write_text(json.dumps(changed))
            if name == "depth" and value == 0:
                continue
            assert name.partition("_")[0] in refused(folder)


@pytest.mark.parametrize("name", ["max_position_embeddings", "intermediate_size", "hidden_size"])
def test_a_null_is_as_if_it_were_not_there(name: str, broken: Callable[[str], Path]) -> None:
    folder = broken("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {name: None}))
    assert f"config.json lacks {name}" in refused(folder)


def test_a_config_of_more_layers_than_there_are_builds_nothing(
    broken: Callable[[str], Path],
) -> None:
    folder = broken("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4000}))
    assert "num_hidden_layers=4000" in refused(folder)


# safetensors


def with_header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    changed = change(header)
    text = json.dumps(header if changed is None else changed).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


NORM = "model.norm.weight"
HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "not an object": lambda header: [header],
    "no dtype": lambda header: header[NORM].pop("dtype") and None,
    "a dtype that is not known": lambda header: header[NORM].update(dtype="F13"),
    "a dtype that is a list": lambda header: header[NORM].update(dtype=[]),
    "a negative shape": lambda header: header[NORM].update(shape=[-64]),
    "a shape that overflows": lambda header: header[NORM].update(shape=[2**40, 2**40]),
    "a shape of texts": lambda header: header[NORM].update(shape=["64"]),
    "a shape that is a text": lambda header: header[NORM].update(shape="64"),
    "a shape without end": lambda header: header[NORM].update(shape=[1] * 1000),
    "offsets backwards": lambda header: header[NORM]["data_offsets"].reverse(),
    "offsets beyond the file": lambda header: header[NORM].update(
        data_offsets=[10**9, 10**9 + 256]
    ),
    "offsets of negative numbers": lambda header: header[NORM].update(data_offsets=[-256, 0]),
    "offsets that overlap": lambda header: header[NORM].update(data_offsets=[0, 256]),
    "three offsets": lambda header: header[NORM].update(data_offsets=[0, 1, 2]),
    "an entry that is a number": lambda header: header.update({NORM: 5}),
    "an odd name": lambda header: header.update({"\n" * 50: header.pop(NORM) | {"shape": [1]}}),
}


@pytest.mark.parametrize("how", HEADERS)
def test_a_header_that_lies_is_refused(how: str, broken: Callable[[str], Path]) -> None:
    folder = broken("llama")
    with_header(folder, HEADERS[how])
    with pytest.raises(OURS) as told:
        read_all(folder)
    assert "model.safetensors" in str(told.value)


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused(
    length: int, broken: Callable[[str], Path]
) -> None:
    folder = broken("llama")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + content[8:])
    assert "not a safetensors file" in refused(folder)


def test_weights_that_are_cut_short_are_refused(broken: Callable[[str], Path]) -> None:
    folder = broken("llama")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1])
    assert "cut short" in refused(folder)


# GGUF


def gguf_start(tensors: int = 0, keys: int = 0, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys)


def key(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def tensor(shape: list[int], kind: int = 0, offset: int = 0, name: str = "output.weight") -> bytes:
    head = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
    return head + struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset)


GGUFS = {
    "nothing": b"",
    "a few bytes": b"GGUF",
    "another magic": gguf_start(magic=b"GGML") + b"\0" * 64,
    "version 0": gguf_start(version=0) + b"\0" * 64,
    "a version of the other byte order": gguf_start(version=3 << 24) + b"\0" * 64,
    "keys without end": gguf_start(keys=2**63) + b"\0" * 64,
    "tensors without end": gguf_start(tensors=2**63) + b"\0" * 64,
    "a key beyond the file": gguf_start(keys=1) + struct.pack("<Q", 2**62) + b"\0" * 64,
    "a text beyond the file": gguf_start(keys=1) + key("a", 8, struct.pack("<Q", 2**40)),
    "a type that is not known": gguf_start(keys=1) + key("a", 99, b"\0" * 64),
    "an array beyond the file": gguf_start(keys=1) + key("a", 9, array(4, 2**20)),
    "an array without end": gguf_start(keys=1) + key("a", 9, array(4, 2**63)),
    "an array of many empty texts": gguf_start(keys=1) + key("a", 9, array(8, 2**60)),
    "arrays of arrays": gguf_start(keys=1) + key("a", 9, array(9, 1, array(9, 1, array(9, 1)))),
    "an alignment of 0": gguf_start(keys=1)
    + key("general.alignment", 4, struct.pack("<I", 0))
    + b"\0" * 64,
    "an alignment of another type": gguf_start(keys=1)
    + key("general.alignment", 8, struct.pack("<Q", 0))
    + b"\0" * 64,
    "a huge alignment": gguf_start(keys=1)
    + key("general.alignment", 4, struct.pack("<I", 2**31))
    + b"\0" * 64,
    "a tensor outside": gguf_start(1) + tensor([32], offset=2**40) + b"\0" * 256,
    "a tensor larger than the file": gguf_start(1) + tensor([2**20]) + b"\0" * 256,
    "a shape that overflows": gguf_start(1) + tensor([2**62, 4]) + b"\0" * 256,
    "a shape of zeros": gguf_start(1) + tensor([0]) + b"\0" * 256,
    "dimensions without end": gguf_start(1) + struct.pack("<Q", 0) + struct.pack("<I", 2**31),
    "a quantization that is not known": gguf_start(1) + tensor([32], kind=999) + b"\0" * 256,
    "half a block": gguf_start(1) + tensor([33], kind=2) + b"\0" * 256,
    "no keys at all": gguf_start() + b"\0" * 64,
}


@pytest.mark.parametrize("how", GGUFS)
def test_a_gguf_file_that_lies_is_refused(how: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(GGUFS[how])
    assert refused(tmp_path / "tiny.gguf")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(place=st.integers(0, 600), value=st.binary(min_size=1, max_size=8), cut=st.booleans())
def test_bytes_of_a_gguf_file_that_have_changed(
    place: int, value: bytes, cut: bool, tmp_path_factory: Any, gguf_bytes: bytes
) -> None:
    folder = tmp_path_factory.mktemp("gguf")
    changed = gguf_bytes[:place] + value + (b"" if cut else gguf_bytes[place + len(value) :])
    (folder / "tiny.gguf").write_bytes(changed)
    with contextlib.suppress(ConfigurationError):
        write_checkpoint(folder / "tiny.gguf", folder, lambda phase, fraction: None)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


# tokenizers


def with_tokenizer(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
TOKENIZERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a regex that backtracks": lambda told: told.update(pre_tokenizer=split("(a+)+b")),
    "a regex that is none": lambda told: told.update(pre_tokenizer=split("(a+")),
    "a text that grows": lambda told: told.update(
        normalizer={"type": "Sequence", "normalizers": [GROWING] * 6}
    ),
    "an id above all": lambda told: told["model"]["vocab"].update(zz=2**32 - 1),
    "an id beyond 32 bits": lambda told: told["model"]["vocab"].update(zz=2**40),
    "an id that is a text": lambda told: told["added_tokens"][0].update(id="1"),
    "a token that is a number": lambda told: told["added_tokens"][0].update(content=5),
    "merges of nothing": lambda told: told["model"].update(merges=[["zz", "yy"]]),
    "no model": lambda told: told.pop("model"),
    "no decoder": lambda told: told.update(decoder=None),
}


@pytest.mark.parametrize("how", TOKENIZERS)
def test_a_tokenizer_that_cannot_be_used_is_refused(
    how: str, broken: Callable[[str], Path]
) -> None:
    folder = broken("llama")
    with_tokenizer(folder, TOKENIZERS[how])
    started = time.monotonic()
    with pytest.raises((CheckpointBroken, ValueError)) as told:
        Tokenizer(folder)
    assert time.monotonic() - started < SECONDS
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "special",
    [{"eos_token": 5}, {"eos_token": {"content": 5}}, {"bos_token": ["a"]}, {"pad_token": True}]
    + [{"added_tokens_decoder": value} for value in (5, [1], {"x": {}}, {"0": 5}, {"-1": {}})]
    + [{"added_tokens_decoder": {"9": {"content": "<x>", "lstrip": "yes"}}}],
)
def test_special_tokens_of_odd_types_are_refused(
    special: dict[str, Any], broken: Callable[[str], Path]
) -> None:
    folder = broken("llama")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | special))
    assert refused(folder)


def test_regular_expressions_of_published_tokenizers_are_taken() -> None:
    published = [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t)?",
        r"\s*[\r\n]+|\s+(?!\S)|\s+|[\p{P}\p{S}]+|\p{N}{1,3}|[一-龥぀-ゟ゠-ヿ]+|( [a-z])?\{+",
    ]
    assert not any(map(repeats_repetition, published))
    nested = ["(a+)+", "(a*)*b", "((a|b)+c?)+", "(?:x{2,})*", "(a+){5}", r"(a+)\1", r"(?:[)]+b)+"]
    assert all(map(repeats_repetition, nested))


def test_a_text_that_a_tokenizer_panics_at_is_an_error_of_ours(
    whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Regex, pre_tokenizers

    tokenizer = Tokenizer(whole["llama"])
    tokenizer._backend.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+b"), "isolated")
    with pytest.raises(TokenizerFailed):
        tokenizer.encode("a" * 64, special=True)
