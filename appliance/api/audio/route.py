"""`POST /v1/audio/transcriptions` and `POST /v1/audio/translations`."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from appliance.api.accept import told
from appliance.api.audio.formats import MEDIA_TYPES, srt, text_of, verbose, vtt, words
from appliance.api.audio.request import UNBUILT, TranscriptionRequest, typed
from appliance.api.audio.stream import TranscriptStream
from appliance.api.fields.validation import parse
from appliance.api.http.exchange import note
from appliance.api.http.form import read_form
from appliance.api.http.responses import json_response
from appliance.api.http.tenants import caller_of
from appliance.api.replies import read_while_wanted
from appliance.errors import bad_request, not_found
from appliance.generation.answers import Origin
from appliance.media.source import Source
from appliance.service import Service
from engine.models.languages import LANGUAGES

if TYPE_CHECKING:
    from appliance.generation.transcribing import Hearing, Segment, Transcriber

TRANSCRIBE, TRANSLATE = "transcribe", "translate"


class Audio:
    """Speech to text."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def transcribe(self, request: Request) -> Response | TranscriptStream:
        """What is said, in its language."""
        return await self._answer(request, TRANSCRIBE)

    async def translate(self, request: Request) -> Response | TranscriptStream:
        """What is said, in English."""
        return await self._answer(request, TRANSLATE)

    async def _answer(self, request: Request, task: str) -> Response | TranscriptStream:
        service, arrived = self._service, time.perf_counter()
        caller = caller_of(request.scope)
        transcriber = self._transcriber(task)
        server = service.config.server
        sent, files = await read_form(
            request, server.max_body_bytes, server.cors_origins, service.aside
        )
        fields, ignored = parse(
            TranscriptionRequest,
            typed(sent),
            UNBUILT,
            reject_unknown=server.unknown_fields == "reject",
        )
        fields.check()
        service.check_model(fields.model)
        if fields.words and not transcriber.tokens.heads:
            raise bad_request(
                "Times of words are not told: the checkpoint's generation_config.json has no "
                "alignment_heads.",
                f"timestamp_granularities[{fields.timestamp_granularities.index('word')}]",
                "unsupported_parameter",
            )
        source = Source("audio", self._file(sent, files), "file", "file")
        from appliance.generation.transcribing import Wish  # loads the model's libraries

        wish = Wish(
            task,
            None if fields.language is None else transcriber.language(fields.language),
            fields.prompt,
            fields.temperature,
            measured=fields.response_format == "verbose_json",
            words=fields.words,
        )
        scope = caller.owner if service.config.cache.share == "key" else b""
        origin = Origin(arrived, scope, caller.tenant.charge)
        headers = told(request, service, ignored)

        async def hear(receive: Receive) -> Hearing:
            read = partial(read_while_wanted, receive)
            return await transcriber.hear(source, wish, origin, caller.owner, read)

        if fields.stream:
            return TranscriptStream(hear, keep_alive=service.keep_alive_seconds, headers=headers)
        hearing = await hear(request.receive)
        segments = [one async for window in hearing.windows() for one in window]
        note(request.scope, prompt_tokens=hearing.heard, generated_tokens=hearing.said)
        return self._whole(fields, task, hearing, segments, headers)

    def _transcriber(self, task: str) -> Transcriber:
        """Raises ApplianceError where there is none, or none yet."""
        transcriber = self._service.generator().transcriber
        if transcriber is None:
            raise not_found(
                "This server's model does not transcribe: sounds may be parts of messages of "
                "/v1/chat/completions, if it takes any.",
                "unsupported_model",
                "model",
            )
        if task == TRANSLATE and TRANSLATE not in transcriber.tokens.tasks:
            raise not_found(
                "This model is for English alone, and translates nothing.",
                "unsupported_model",
                "model",
            )
        return transcriber

    @staticmethod
    def _file(sent: dict[str, Any], files: dict[str, bytes]) -> bytes:
        """Raises ApplianceError unless there is one file, by the name of `file`."""
        if "file" in files:
            return files["file"]
        if "file" in sent:
            raise bad_request(
                "'file' must be a file: its part needs a filename.", "file", "invalid_type"
            )
        raise bad_request("'file' is required.", "file", "missing_required_parameter")

    @staticmethod
    def _whole(
        fields: TranscriptionRequest,
        task: str,
        hearing: Hearing,
        segments: list[Segment],
        headers: dict[str, str],
    ) -> Response:
        asked, text = fields.response_format, text_of(segments)
        if asked in MEDIA_TYPES:
            body = {"srt": srt, "vtt": vtt}[asked](segments) if asked != "text" else f"{text}\n"
            return Response(body, headers=headers, media_type=MEDIA_TYPES[asked])
        answer: dict[str, Any] = {"text": text}
        if asked == "verbose_json":
            spoken = "english" if task == TRANSLATE else LANGUAGES[hearing.language]
            answer = {
                "task": task,
                "language": spoken,
                "duration": hearing.seconds,
                **answer,
            }
            if fields.segments:
                answer["segments"] = verbose(segments, fields.temperature)
            if fields.words:
                answer["words"] = words(segments)
        usage = {"type": "duration", "seconds": hearing.seconds}
        return json_response(answer | {"usage": usage}, headers)
