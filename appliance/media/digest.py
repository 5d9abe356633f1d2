"""What a media item is known by: its bytes, and all else that its tensors depend on."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from appliance.media.prepare import MediaSettings, Options

PROCESSING = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


def content_digest(kind: str, data: bytes) -> bytes:
    """BLAKE2b-256 of an item's kind and bytes: what a client's name for it is bound to."""
    digest = blake2b(f"{kind}\0".encode(), digest_size=32)
    digest.update(data)
    return digest.digest()


def tensor_digest(salt: bytes, scope: bytes, content: bytes, options: Options) -> bytes:
    """BLAKE2b-256 of all that an item's tensors depend on: server, content, request.

    `scope` is of those who may find what is made of it: empty for all, else 32 bytes.
    """
    wanted = repr(sorted(options.items())).encode()
    return blake2b(b"".join([salt, scope, content, wanted]), digest_size=32).digest()


def processing_salt(folder: Path, family: str, settings: MediaSettings) -> bytes:
    """Digest of how a server prepares media: family, checkpoint and recipe."""
    salt = blake2b(digest_size=32)
    salt.update(f"{family}\0{settings!r}\0".encode())
    for name in PROCESSING:
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        salt.update(f"{name}\0{len(content)}\0".encode() + content)
    return salt.digest()
