"""Containers of video and sound, opened so that only their own bytes are ever read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import av
from av.container import InputContainer
from av.stream import Stream

from appliance.media.extent import is_cut_off

# Demuxers that read one file and nothing else: no playlists, image sequences or devices.
VIDEO_FORMATS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "ogg", "gif", "apng", "asf")
AUDIO_FORMATS = ("mov", "matroska", "ogg", "aac", "mp3", "wav", "flac")
VIDEO_CODECS = (
    "h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "libvpx", "libvpx-vp9", "mpeg4", "h263",
    "mpeg1video", "mpeg2video", "mjpeg", "theora", "prores", "msmpeg4v3", "flv", "gif", "apng",
    "wmv1", "wmv2", "wmv3", "vc1",
)  # fmt: skip
AUDIO_CODECS = (
    "aac", "alac", "flac", "mp3", "mp3float", "opus", "libopus", "vorbis", "libvorbis", "ac3",
    "eac3", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_u8",
    "pcm_mulaw", "pcm_alaw",
)  # fmt: skip
NO_PROTOCOL = "none"  # FFmpeg takes an empty list for no list


@contextmanager
def opened(
    data: bytes, formats: tuple[str, ...], codecs: tuple[str, ...], max_pixels: int | None = None
) -> Iterator[InputContainer]:
    """`data` as a container of one of `formats`. Raises av.FFmpegError or ValueError.

    Decoders that look into it while it is opened refuse pictures of more than `max_pixels`.
    """
    options = {
        "format_whitelist": ",".join(formats),
        "codec_whitelist": ",".join(codecs),
        "protocol_whitelist": NO_PROTOCOL,
    }
    if max_pixels is not None:
        options["max_pixels"] = str(max_pixels)
    with av.open(BytesIO(data), "r", options=options, metadata_errors="ignore") as container:
        yield container


def lacks_media(data: bytes, container: InputContainer, stream: Stream) -> bool:
    """Whether bytes of `stream` are missing, as its table of samples or the file's form says."""
    if container.format.name.startswith("mov"):
        entries = stream.index_entries
        if any(one.pos + one.size > len(data) for one in entries):
            return True
    return is_cut_off(data)
