"""What a media item is known by: its bytes, and all else that its tensors depend on."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from appliance.media.prepare import MediaSettings, MediaTask

PROCESSING = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


def digest_of(salt: bytes, task: MediaTask) -> bytes:
    """BLAKE2b-256 of an item's bytes and of all that its tensors depend on besides."""
    digest = blake2b(salt, digest_size=32)
    options = sorted(task.options.items())
    digest.update(f"\0{task.kind}\0{options!r}\0".encode())
    digest.update(task.data)
    return digest.digest()


def processing_salt(folder: Path, family: str, settings: MediaSettings) -> bytes:
    """Digest of how a server prepares media: family, checkpoint and recipe."""
    salt = blake2b(digest_size=32)
    salt.update(f"{family}\0{settings!r}\0".encode())
    for name in PROCESSING:
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        salt.update(f"{name}\0{len(content)}\0".encode() + content)
    return salt.digest()
