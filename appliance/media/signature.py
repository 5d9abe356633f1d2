"""Which kinds of media bytes may be, from how they begin. Decoders have the last word."""

from __future__ import annotations

from appliance.media import png

MODALITIES = frozenset({"image", "video", "audio"})
IMAGE, VIDEO, AUDIO = frozenset({"image"}), frozenset({"video"}), frozenset({"audio"})
LOOKED_AT = 64

BEGINNINGS = (
    (b"GIF8", IMAGE | VIDEO),
    (b"\xff\xd8\xff", IMAGE),
    (b"BM", IMAGE),
    (b"II*\0", IMAGE),
    (b"MM\0*", IMAGE),
    (b"II+\0", IMAGE),
    (b"MM\0+", IMAGE),
    (b"\xff\x4f\xff\x51", IMAGE),  # JPEG 2000 without a container
    (b"\0\0\0\x0cjP  ", IMAGE),
    (b"\x1aE\xdf\xa3", VIDEO | AUDIO),  # Matroska, WebM
    (b"OggS", VIDEO | AUDIO),
    (b"\0\0\1\xba", VIDEO | AUDIO),  # MPEG
    (b"\0\0\1\xb3", VIDEO),
    (b"FLV", VIDEO | AUDIO),
    (b"0&\xb2u\x8ef\xcf\x11", VIDEO | AUDIO),  # ASF
    (b"G", VIDEO | AUDIO),  # MPEG transport stream
    (b"fLaC", AUDIO),
    (b"ID3", AUDIO),
)
RIFF = {b"WAVE": AUDIO, b"AVI ": VIDEO | AUDIO}
WEBP, ANIMATED = b"WEBPVP8X", 2
MOVIE_BOXES = (b"moov", b"moof", b"styp", b"mdat", b"wide", b"free", b"skip", b"pnot")
AVIF_SEQUENCE = b"avis"
IMAGE_BRANDS = (b"avif", b"avis", b"hei", b"hev", b"mif1", b"msf1", b"MiHE", b"MiHA")
MOVING_BRANDS = (AVIF_SEQUENCE, b"hevc", b"hevx", b"msf1")  # sequences of pictures


def modalities(data: bytes | bytearray) -> frozenset[str]:
    """Whether bytes may be an `image`, a `video`, `audio`, several of them, or none."""
    start = bytes(data[:LOOKED_AT])
    if start.startswith(png.SIGNATURE):
        return IMAGE | VIDEO if png.is_animated(data) else IMAGE
    if start[8:12] == WEBP[:4]:
        moves = start[8:16] == WEBP and len(start) > 20 and start[20] & ANIMATED
        return IMAGE | VIDEO if moves else IMAGE
    if start[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return RIFF.get(start[8:12], frozenset())
    if start[4:8] == b"ftyp":
        brands = _brands(start)
        if not any(brand.startswith(IMAGE_BRANDS) for brand in brands):
            return VIDEO | AUDIO
        return IMAGE | VIDEO if any(brand in MOVING_BRANDS for brand in brands) else IMAGE
    if start[4:8] in MOVIE_BOXES:
        return VIDEO | AUDIO
    for beginning, kinds in BEGINNINGS:
        if start.startswith(beginning):
            return kinds
    if len(start) > 1 and start[0] == 0xFF and start[1] >= 0xE0:  # MP3, AAC
        return AUDIO
    return frozenset()


def is_avif_sequence(data: bytes) -> bool:
    """Whether it is pictures of AVIF that move."""
    start = data[:LOOKED_AT]
    return start[4:8] == b"ftyp" and AVIF_SEQUENCE in _brands(start)


def _brands(start: bytes) -> list[bytes]:
    """What a file of boxes says that it is, the version between two of them included."""
    return [start[at : at + 4] for at in range(8, len(start), 4)]
