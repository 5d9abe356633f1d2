"""What a request may set about its media: named once, for configuration, API and workers."""

from __future__ import annotations

# each option of `media_io_kwargs`, and the key of its modality's group that it may only lower
CEILINGS = {"video.num_frames": "frames", "video.fps": "fps"}
