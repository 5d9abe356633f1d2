"""What runs, on one screen, once it is ready."""

from __future__ import annotations

from appliance.config.compose import Composed
from appliance.config.schema import (
    AudioConfig,
    Config,
    ImageConfig,
    MediaConfig,
    ServerConfig,
    VectorsConfig,
    VideoConfig,
)
from engine.memory.plan import Plan, size
from engine.native.choice import in_words


def render(
    composed: Composed, plan: Plan, address: str | None = None, answers: str | None = None
) -> str:
    """Return the start-up summary; `address` is what was bound, else what was configured.

    `answers` says what they may hold besides text, once the template is known.
    """
    rows = facts(composed, plan, address, answers).items()
    return "\n".join(f"  {name:<14}{text}" for name, text in rows)


def facts(
    composed: Composed, plan: Plan, address: str | None = None, answers: str | None = None
) -> dict[str, str]:
    """Return what the summary says, by what it says it of."""
    config = composed.config
    rows = [
        ("model", f"{config.model.name}  {plan.architecture}, {plan.parameters / 1e6:,.0f}M"),
        ("weights", f"{config.model.path}  {kinds(plan)}, {size(plan.weights_bytes)}"),
        ("device", device(config, plan)),
        ("context", f"{plan.max_len:,} tokens, {plan.max_sequences} sequences at once"),
        ("KV cache", kv_cache(plan)),
        *([("states", states(plan))] if plan.state_pages else []),
        ("vectors", vectors(config.embeddings)),
        ("images", images(config.media.image)),
        ("videos", videos(config.media.video)),
        ("sounds", sounds(config.media.audio)),
        *([("embeddings", embeddings(config.media))] if config.media.embeddings.accept else []),
        *([("answers", answers)] if answers else []),
        ("remote media", remote_media(config.media)),
        ("keys", accepted_keys(config.server)),
        ("address", address or configured_address(config)),
        ("recipe", f"{config.recipe or 'none'}  {composed.digest}"),
    ]
    return dict(rows)


def kv_cache(plan: Plan) -> str:
    """Return how much there is."""
    if not plan.kv_bytes:
        return "none: prompts are computed whole and nothing is kept"
    tokens = f"{plan.pages:,} pages of {plan.page_size} = {plan.tokens:,} tokens"
    return f"{tokens}, {size(plan.kv_bytes)}"


def vectors(config: VectorsConfig) -> str:
    """Return in words what vectors are made of."""
    if config.rerank:
        return "none: pairs of texts are scored"
    if not config.serve:
        return "not served"
    states = {"last": "the last token", "mean": "the mean of all tokens", "cls": "the first token"}
    return f"of {states[config.pooling]}{', of length 1' if config.normalize else ''}"


def states(plan: Plan) -> str:
    """Return what there is for items that the decoder attends to across."""
    assert plan.states is not None
    return f"{plan.state_pages:,} x {plan.states.page:,}, {size(plan.state_bytes)}"


def kinds(plan: Plan) -> str:
    """Return the types of the weights."""
    return plan.dtype if plan.fewer_bits is None else f"{plan.dtype}, {plan.fewer_bits}"


def accepted_keys(server: ServerConfig) -> str:
    """Return how many keys there are."""
    named = sum(len(tenant.keys) for tenant in server.tenants.values())
    if not named + len(server.api_keys):
        return "none asked for"
    tenants = f", {named} of them in {len(server.tenants)} tenants" if named else ""
    return f"{named + len(server.api_keys)} accepted{tenants}"


def device(config: Config, plan: Plan) -> str:
    engine, ranks = config.engine, config.parallelism.tensor
    across = plan.states is not None
    fused = "fused layers" if engine.fuse and plan.kv_bytes and not across else "unfused layers"
    each = f", {ranks} processes" if ranks > 1 else ""
    if engine.device == "cpu":
        by_whom = in_words(plan.options, across=across)
        return f"cpu{each}, {engine.threads or 'all'} threads, {fused}, {by_whom}"
    graphs = "decoding from graphs" if engine.graphs else "no graphs"
    return f"{engine.device} with FlashInfer{each}, {graphs}, {fused}"


def images(policy: ImageConfig) -> str:
    """Return the limits of images in words."""
    colour = ",".join(map(str, policy.rgba_background))
    return limits(policy, f"{policy.max_pixels / 1e6:g} MP", f"transparent on {colour}")


def videos(policy: VideoConfig) -> str:
    """Return the limits of videos in words."""
    rate = f"{policy.fps:g} frames a second" if policy.fps else "the processor's frame rate"
    return limits(policy, f"{policy.max_seconds:g} s", rate)


def sounds(policy: AudioConfig) -> str:
    """Return the limits of sounds in words."""
    return limits(policy, f"{policy.max_seconds:g} s")


def limits(policy: ImageConfig | VideoConfig | AudioConfig, length: str, *more: str) -> str:
    if policy.limit == 0:
        return "refused"
    each = f"up to {policy.limit} a request, {size(policy.max_bytes)} and {length} each"
    return ", ".join([each, *more])


def embeddings(media: MediaConfig) -> str:
    """Return in words that embeddings are taken."""
    return f"taken in place of images, {size(media.embeddings.max_bytes)} each"


def remote_media(media: MediaConfig) -> str:
    """Return in words where media are fetched from."""
    remote = [scheme for scheme in media.schemes if scheme != "data"]
    sources = []
    if media.allowed_domains and remote:
        domains = ", ".join(media.allowed_domains)
        private = ", private addresses too" if media.allow_private else ""
        proxy = f", through {media.proxy}" if media.proxy else ""
        sources.append(f"{' and '.join(remote)} from {domains}{private}{proxy}")
        sources.append(f"redirects: {media.redirects}")
    if media.local_path:
        sources.append(f"files below {media.local_path}")
    return "; ".join(sources) or "refused; media come as data: URLs"


def configured_address(config: Config) -> str:
    server = config.server
    if server.uds is not None:
        return f"unix:{server.uds}"
    host = f"[{server.host}]" if ":" in server.host else server.host
    scheme = "http" if server.tls_certificate is None else "https"
    return f"{scheme}://{host}:{server.port}"
