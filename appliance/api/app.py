"""The ASGI application: its routes and what surrounds them."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from appliance.api.audio.route import Audio
from appliance.api.chat.route import Chat
from appliance.api.completions.route import Completions
from appliance.api.embeddings.route import Embeddings
from appliance.api.generate.route import Generate
from appliance.api.http.auth import Authentication
from appliance.api.http.cors import CrossOrigin
from appliance.api.http.exchange import CLIENT_GONE, Exchange
from appliance.api.http.faults import fault_response, on_fault, on_http_exception
from appliance.api.http.paths import Rooted, SingleSlashes
from appliance.api.http.tenants import Tenants
from appliance.api.messages.route import Messages
from appliance.api.models import Models
from appliance.api.probes import Probes
from appliance.api.prompts.route import Prompts
from appliance.api.reference.route import Reference
from appliance.api.rerank.route import Rerank
from appliance.api.responses.route import Responses
from appliance.errors import ApplianceError, internal
from appliance.service import Service


def routes(service: Service) -> list[Route]:
    """The index of the API."""
    audio = Audio(service)
    chat, completions, generate = Chat(service), Completions(service), Generate(service)
    models, probes, responses = Models(service), Probes(service), Responses(service)
    embeddings, rerank = Embeddings(service), Rerank(service)
    messages, prompts, reference = Messages(service), Prompts(service), Reference(service)
    return [
        Route("/v1/chat/completions", chat.create, methods=["POST"]),
        Route("/v1/messages", messages.create, methods=["POST"]),
        Route("/v1/messages/count_tokens", messages.count_tokens, methods=["POST"]),
        Route("/v1/responses", responses.create, methods=["POST"]),
        Route("/v1/responses/{id}", responses.retrieve, methods=["GET"]),
        Route("/v1/responses/{id}", responses.delete, methods=["DELETE"]),
        Route("/v1/completions", completions.create, methods=["POST"]),
        Route("/v1/chat/completions/render", prompts.render_chat, methods=["POST"]),
        Route("/v1/completions/render", prompts.render_text, methods=["POST"]),
        Route("/tokenize", prompts.tokenize, methods=["POST"]),
        Route("/detokenize", prompts.detokenize, methods=["POST"]),
        Route("/generate", generate.create, methods=["POST"]),
        Route("/get_model_info", models.sglang, methods=["GET"]),
        Route("/model_info", models.sglang, methods=["GET"]),
        Route("/v1/embeddings", embeddings.create, methods=["POST"]),
        Route("/v1/rerank", rerank.rerank, methods=["POST"]),
        Route("/rerank", rerank.rerank, methods=["POST"]),
        Route("/v1/score", rerank.score, methods=["POST"]),
        Route("/score", rerank.score, methods=["POST"]),
        Route("/v1/audio/transcriptions", audio.transcribe, methods=["POST"]),
        Route("/v1/audio/translations", audio.translate, methods=["POST"]),
        Route("/v1/models", models.list, methods=["GET"]),
        Route("/v1/models/{id:path}", models.retrieve, methods=["GET"]),
        Route("/livez", probes.livez, methods=["GET"]),
        Route("/readyz", probes.readyz, methods=["GET"]),
        Route("/startupz", probes.startupz, methods=["GET"]),
        Route("/health", probes.readyz, methods=["GET"]),
        Route("/ping", probes.readyz, methods=["GET", "POST"]),
        Route("/metrics", probes.metrics, methods=["GET"]),
        Route("/version", probes.version, methods=["GET"]),
        Route("/openapi.json", reference.openapi, methods=["GET"]),
        Route("/docs", reference.docs, methods=["GET"]),
    ]


def create_app(service: Service) -> ASGIApp:
    """The application of one served model, middleware included."""
    table = routes(service)
    starlette = Starlette(
        routes=table,
        exception_handlers={
            ApplianceError: on_fault,
            HTTPException: on_http_exception,
            ClientDisconnect: on_client_gone,
            Exception: on_crash,
        },
    )
    starlette.router.redirect_slashes = False
    server = service.config.server
    app: ASGIApp = Authentication(starlette, Tenants(server, service.secrecy))
    if server.cors_origins:
        app = CrossOrigin(app, server.cors_origins)
    app = SingleSlashes(Exchange(app, service, table), table)
    return app if server.root_path is None else Rooted(app, server.root_path)


def on_client_gone(request: Request, fault: Exception) -> Response:
    """Nobody reads this; its status is what the log and the metrics say."""
    return Response(status_code=CLIENT_GONE)


def on_crash(request: Request, fault: Exception) -> Response:
    """Our bug: a request id, never a traceback."""
    return fault_response(internal(request.scope["appliance.request_id"]))
