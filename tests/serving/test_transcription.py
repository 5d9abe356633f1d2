"""Speech to text through the launched endpoint, with the official client."""

from __future__ import annotations

import gzip
import io
import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import soundfile
import torch
from openai.types.audio import Transcription, TranscriptionVerbose
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words

from appliance.prompt.tokenizer import Tokenizer
from tests.checkpoints import write_whisper
from tests.engine.models.sounds import RATE, Samples, sound
from tests.generation.test_words import Theirs
from tests.serving.conftest import Server, metric, serving

SHORT, WINDOW, LONG = sound(21_000, 1), sound(32_000, 2), sound(100_123, 3)
SOUNDS = {"short": SHORT, "window": WINDOW, "long": LONG}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("whisper"), positions=64)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    told = [f"model.path={folder}", "model.name=tiny", "engine.threads=1", "media.audio.limit=1"]
    with serving(*told, "media.audio.max_seconds=8", "media.audio.max_bytes=500000") as server:
        yield server


@dataclass
class Reference:
    """transformers' own transcripts."""

    folder: Path

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self.model = WhisperForConditionalGeneration.from_pretrained(self.folder).eval()
        self.extractor = WhisperFeatureExtractor.from_pretrained(self.folder)
        self.tokenizer = Tokenizer(self.folder)

    def features(self, samples: Samples) -> Any:
        long = len(samples) > 32_000
        return self.extractor(
            [samples],
            sampling_rate=RATE,
            truncation=not long,
            padding="longest" if long else "max_length",
            return_tensors="pt",
        ).input_features

    @torch.no_grad()
    def segments(self, samples: Samples, **asked: Any) -> list[tuple[float, float, list[int]]]:
        found = self.model.generate(
            self.features(samples),
            return_timestamps=True,
            return_segments=True,
            do_sample=False,
            **asked,
        )
        return [
            (round(float(one["start"]), 2), round(float(one["end"]), 2), one["tokens"].tolist())
            for one in found["segments"][0]
        ]

    @torch.no_grad()
    def words(self, samples: Samples) -> list[tuple[str, float, float]]:
        """As its pipeline puts them together: a word ends where the next token begins."""
        asked = {"language": "en", "task": "transcribe", "return_token_timestamps": True}
        long = len(samples) > 32_000
        heard = self.extractor(
            [samples],
            sampling_rate=RATE,
            truncation=not long,
            padding="longest" if long else "max_length",
            return_attention_mask=True,
            return_tensors="pt",
        )
        model = WhisperForConditionalGeneration.from_pretrained(
            self.folder, attn_implementation="eager"
        ).eval()
        found = model.generate(
            heard.input_features,
            attention_mask=heard.attention_mask,
            return_timestamps=True,
            return_segments=True,
            do_sample=False,
            **asked,
        )
        end, words = model.config.eos_token_id, []
        for segment in found["segments"][0]:
            tokens, times = segment["tokens"].tolist(), segment["token_timestamps"].tolist()
            first, last = segment["idxs"]
            window = segment["result"]["token_timestamps"].tolist()
            if last < len(window):  # the window's next token
                times.append(window[last] + times[0] - window[first])
            places = [place for place, token in enumerate(tokens) if token < end]
            texts, _, indices = _combine_tokens_into_words(
                Theirs(self.tokenizer), [tokens[place] for place in places], "english"
            )
            for text, where in zip(texts, indices, strict=True):
                last = min(places[where[-1]] + 1, len(times) - 1)
                words.append((text.strip(), times[places[where[0]]], times[last]))
        return words

    def text(self, segments: list[tuple[float, float, list[int]]]) -> str:
        end = self.model.config.eos_token_id
        words = [token for _, _, tokens in segments for token in tokens if token < end]
        return self.tokenizer.decode(words).strip()

    @torch.no_grad()
    def first(self, samples: Samples) -> torch.Tensor:
        """Log-probabilities of what follows the token that begins a transcript."""
        start = torch.tensor([[self.model.config.decoder_start_token_id]])
        features = self.features(samples)[..., :200]
        return self.model(features, decoder_input_ids=start).logits[0, -1].log_softmax(-1)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


def file_of(samples: Samples) -> tuple[str, bytes]:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, "FLOAT", format="WAV")
    return "speech.wav", file.getvalue()


def hear(server: Server, samples: Samples, **asked: Any) -> Any:
    return server.client.audio.transcriptions.create(
        model="tiny", file=file_of(samples), **{"language": "en", **asked}
    )


@pytest.mark.parametrize("name", SOUNDS)
def test_segments_are_those_of_transformers_in_every_window(
    name: str, server: Server, reference: Reference
) -> None:
    samples = SOUNDS[name]
    told = hear(server, samples, response_format="verbose_json")
    assert isinstance(told, TranscriptionVerbose)
    expected = reference.segments(samples, language="en", task="transcribe")
    assert [(one.start, one.end, one.tokens) for one in told.segments or []] == expected
    assert told.text == reference.text(expected)
    assert (told.language, told.duration) == ("english", len(samples) / RATE)
    # control: of another sound, or in another language, they differ
    if name != "short":  # of which a random model makes the same of any
        other = sound(len(samples), 9)
        assert expected != reference.segments(other, language="en", task="transcribe")
    assert expected != reference.segments(samples, language="fr", task="transcribe")
    windows = {one.seek for one in told.segments or []}
    assert (len(windows) > 1) == (name == "long")


def test_every_format_has_the_same_text(server: Server) -> None:
    verbose = hear(server, LONG, response_format="verbose_json")
    assert isinstance(plain := hear(server, LONG), Transcription)
    assert plain.text == verbose.text
    assert hear(server, LONG, response_format="text").strip("\n") == verbose.text
    lines = [" ".join(one.text.split()) for one in verbose.segments]
    subtitles = hear(server, LONG, response_format="srt")
    cues = subtitles.strip("\n").split("\n\n")
    assert [cue.split("\n")[0] for cue in cues] == [str(n + 1) for n in range(len(lines))]
    time = r"\d\d:\d\d:\d\d,\d{3}"
    assert all(re.fullmatch(f"{time} --> {time}", cue.split("\n")[1]) for cue in cues)
    texts = ["\n".join(cue.split("\n")[2:]) for cue in cues]
    assert [text.replace("->", "-->") for text in texts] == lines or texts == lines
    web = hear(server, LONG, response_format="vtt")
    assert web.startswith("WEBVTT\n\n00:00.")
    assert web.count(" --> ") == len(lines)


def test_a_stream_tells_segments_and_then_all_of_it(server: Server) -> None:
    whole = hear(server, LONG).text
    events = list(hear(server, LONG, stream=True))
    kinds = [one.type for one in events]
    assert kinds == ["transcript.text.delta"] * (len(events) - 1) + ["transcript.text.done"]
    assert len(events) > 2
    assert "".join(one.delta for one in events[:-1]).strip() == whole
    assert events[-1].text == whole
    used = events[-1].usage
    assert used.total_tokens == used.input_tokens + used.output_tokens > 0


def test_the_language_is_the_likeliest_one(server: Server, reference: Reference) -> None:
    first = reference.first(SHORT)
    ids = reference.model.generation_config.lang_to_id
    likeliest = max(ids, key=lambda text: float(first[ids[text]]))
    names = {"<|en|>": "english", "<|de|>": "german", "<|fr|>": "french"}
    told = hear(server, SHORT, response_format="verbose_json", language=openai.omit)
    assert told.language == names[likeliest]
    silence = reference.model.generation_config.no_timestamps_token_id - 1
    quiet = float(first[silence].exp())
    assert told.segments[0].no_speech_prob == pytest.approx(quiet, rel=1e-3)
    assert told.text == reference.text(reference.segments(SHORT, task="transcribe"))
    assert hear(server, SHORT, language="French").text == hear(server, SHORT, language="fr").text


def test_translations_are_told_apart_from_transcripts(server: Server, reference: Reference) -> None:
    told = server.client.audio.translations.create(
        model="tiny",
        file=file_of(LONG),
        response_format="verbose_json",
        extra_body={"language": "de"},
    )
    expected = reference.segments(LONG, language="de", task="translate")
    assert told.text == reference.text(expected)
    assert told.language == "english"
    assert told.text != hear(server, LONG, language="de").text


def test_a_prompt_is_what_came_before(server: Server, reference: Reference) -> None:
    tokenizer = reference.tokenizer
    words = "The quick brown fox"
    before = [tokenizer.added["<|startofprev|>"], *tokenizer.encode(f" {words}", special=False)]
    asked = {"language": "en", "task": "transcribe", "prompt_ids": torch.tensor(before)}
    expected = reference.text(reference.segments(SHORT, **asked))
    assert hear(server, SHORT, prompt=words).text == expected
    assert hear(server, SHORT).text != expected


def test_a_temperature_makes_it_vary(server: Server) -> None:
    told = {hear(server, SHORT, temperature=1).text for _ in range(3)}
    assert len(told) > 1
    assert len({hear(server, SHORT, temperature=0).text for _ in range(2)}) == 1


def test_the_log_probability_is_the_mean_of_the_windows_tokens(
    server: Server, reference: Reference
) -> None:
    told = hear(server, SHORT, response_format="verbose_json")
    [segment] = told.segments
    config = reference.model.generation_config
    prompt = [config.decoder_start_token_id, config.lang_to_id["<|en|>"]]
    prompt.append(config.task_to_id["transcribe"])
    assert len(prompt) + len(segment.tokens) == 64  # all that a window has room for
    ids = torch.tensor([prompt + segment.tokens])
    with torch.no_grad():
        logits = reference.model(reference.features(SHORT), decoder_input_ids=ids).logits[0]
    rows = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    likely = rows.gather(1, ids[0, len(prompt) :, None])
    assert segment.avg_logprob == pytest.approx(float(likely.mean()), abs=1e-3)
    assert segment.compression_ratio > 1  # a random model repeats itself


@pytest.mark.parametrize("name", SOUNDS)
def test_words_are_timed_as_transformers_times_them(
    name: str, server: Server, reference: Reference
) -> None:
    told = hear(
        server,
        SOUNDS[name],
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    expected = reference.words(SOUNDS[name])
    found = [(word.word, word.start, word.end) for word in told.words]
    assert [word for word, _, _ in found] == [word for word, _, _ in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[1:] == pytest.approx(theirs[1:], abs=0.0051)
    assert name != "long" or len({start for _, start, _ in found}) > 3
    assert told.segments == hear(server, SOUNDS[name], response_format="verbose_json").segments
    alone = hear(
        server, SOUNDS[name], response_format="verbose_json", timestamp_granularities=["word"]
    )
    assert (alone.segments, alone.words) == (None, told.words)


@pytest.mark.parametrize("streamed", [True, False])
def test_who_leaves_has_nothing_computed_any_more(streamed: bool, server: Server) -> None:
    fields: dict[str, Any] = {"model": "tiny", "file": file_of(sound(120_000, 5))[1]}
    body, kind = multipart(fields | {"language": "en", "stream": str(streamed).lower()})
    host, port = server.base_url.removeprefix("http://").split(":")
    head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        if streamed:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        else:
            wait_until(lambda: metric(server, "appliance_kv_pages_used") > 0)
    wait_until(lambda: "status=499" in server.output or streamed)
    wait_until(lambda: metric(server, "appliance_kv_pages_used") == 0)
    assert "Traceback" not in server.output
    assert hear(server, SHORT).text == hear(server, SHORT).text


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sounds_that_are_heard_side_by_side_do_not_change_each_other(server: Server) -> None:
    sounds = [sound(20_000 + 15_000 * number, number) for number in range(6)]
    alone = [hear(server, one).text for one in sounds]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda one: hear(server, one).text, sounds))
    assert together == alone


BAD: dict[str, tuple[dict[str, Any], int, str | None, str]] = {
    "no model": ({"model": None}, 400, "model", "missing_required_parameter"),
    "another model": ({"model": "whisper-1"}, 404, "model", "model_not_found"),
    "no file": ({"file": None}, 400, "file", "missing_required_parameter"),
    "no sound": ({"file": b"not a sound"}, 422, "file", "media_undecodable"),
    "an empty file": ({"file": b""}, 422, "file", "media_undecodable"),
    "too many bytes": ({"file": b"RIFF" + bytes(500_001)}, 400, "file", "media_too_large"),
    "a language": ({"language": "klingon"}, 400, "language", "invalid_value"),
    "a format": ({"response_format": "xml"}, 400, "response_format", "invalid_value"),
    "hot": ({"temperature": "1.5"}, 400, "temperature", "invalid_value"),
    "no number": ({"temperature": "warm"}, 400, "temperature", "invalid_type"),
    "not a number": ({"temperature": "nan"}, 400, "temperature", "invalid_type"),
    "no truth": ({"stream": "perhaps"}, 400, "stream", "invalid_type"),
    "subtitles streamed": (
        {"stream": "true", "response_format": "srt"},
        400,
        "stream",
        "invalid_value",
    ),
    "a granularity": (
        {"timestamp_granularities[]": "letter", "response_format": "verbose_json"},
        400,
        "timestamp_granularities[0]",
        "invalid_value",
    ),
    "granularities of text": (
        {"timestamp_granularities[]": "segment"},
        400,
        "timestamp_granularities",
        "invalid_value",
    ),
    "logprobs": ({"include[]": "logprobs"}, 400, "include", "unsupported_parameter"),
    "chunks": ({"chunking_strategy": "auto"}, 400, "chunking_strategy", "unsupported_parameter"),
    "a long prompt": ({"prompt": "x" * 20_000}, 400, "prompt", "invalid_value"),
    "a field too long": ({"prompt": "x" * 70_000}, 400, None, "invalid_form"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_told_with_its_field(name: str, server: Server) -> None:
    changes, status, param, code = BAD[name]
    fields: dict[str, Any] = {"model": "tiny", "file": file_of(SHORT)[1]} | changes
    found = post(server, *multipart(fields))
    assert found[0] == status, found
    error = found[1]["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert "\n" not in error["message"]


def test_bodies_that_are_no_form_are_refused(server: Server) -> None:
    body, kind = multipart({"model": "tiny", "file": file_of(SHORT)[1]})
    assert post(server, b"{}", "application/json")[0] == 415
    assert post(server, body, "multipart/form-data")[0] == 400  # no boundary
    assert post(server, body[: len(body) // 2], kind)[0] == 400
    assert post(server, body, kind, Origin="https://elsewhere.example")[0] == 403
    assert post(server, body, kind)[0] == 200
    packed = gzip.compress(body)
    assert post(server, packed, kind, **{"Content-Encoding": "gzip"})[0] == 200
    assert post(server, packed[:-9], kind, **{"Content-Encoding": "gzip"})[0] == 400
    assert post(server, packed, kind, **{"Content-Encoding": "br"})[0] == 415
    status, _, headers = post(server, *multipart({"model": "tiny", "odd": "1", "file": b"x"}))
    assert status == 422
    assert "X-Ignored-Fields" not in headers
    fields = {"model": "tiny", "odd": "1", "file": file_of(SHORT)[1]}
    assert post(server, *multipart(fields))[2]["X-Ignored-Fields"] == "odd"


def test_a_model_that_transcribes_does_nothing_else(server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="/v1/audio/transcriptions"):
        server.client.completions.create(model="tiny", prompt="Once")
    with pytest.raises(openai.NotFoundError, match="/v1/audio/transcriptions"):
        server.client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hello"}]
        )


def test_a_model_that_does_not_transcribe_says_so(
    checkpoint: Callable[[str], Path], tiny_llama: Server
) -> None:
    with pytest.raises(openai.NotFoundError, match="does not transcribe"):
        hear(tiny_llama, SHORT)


def multipart(fields: dict[str, Any]) -> tuple[bytes, str]:
    parts = b""
    for name, value in fields.items():
        if value is None:
            continue
        named = f'; filename="{name}.wav"' if isinstance(value, bytes) else ""
        content = value if isinstance(value, bytes) else str(value).encode()
        head = f'--edge\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
        parts += head.encode() + content + b"\r\n"
    return parts + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def post(server: Server, body: bytes, kind: str, **headers: str) -> tuple[int, Any, Any]:
    asked = urllib.request.Request(
        f"{server.base_url}/v1/audio/transcriptions",
        data=body,
        headers={"Content-Type": kind, **headers},
        method="POST",
    )
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, json.loads(answer.read()), answer.headers
    except urllib.error.HTTPError as refused:
        return refused.code, json.loads(refused.read()), refused.headers
