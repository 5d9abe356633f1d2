"""What a model family has to say about itself; each family is one small file beside this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from engine.errors import ModelUnsupported
from engine.models.documents import read_document
from engine.request import MediaItem

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image
    from torch import nn

    from engine.attention.backend import CrossLayers

    Arrays = dict[str, NDArray[Any]]  # of an item, by name
    Upload = Callable[[torch.Tensor], torch.Tensor]  # to the model's device; the host does not wait


def stay(tensor: torch.Tensor) -> torch.Tensor:
    """`Upload` of the CPU."""
    return tensor


@dataclass(slots=True, frozen=True)
class VideoOptions:
    """Settings of a family's video processor; None leaves what the checkpoint says.

    `frames` is the most that are sampled and `fps` how many a second; `frame_pixels` is the most
    that a frame keeps when it is resized, and `tokens` what all frames of a video share.
    """

    frames: int | None = None
    fps: float | None = None
    frame_pixels: int | None = None
    tokens: int | None = None


@dataclass(slots=True, frozen=True)
class StateSizes:
    """What a decoder keeps of encoded items that it attends to across: keys and values of states.

    A page holds what a tower gives at once, `page` states, so that an item's lie side by side.
    """

    page: int
    pages: int  # that a sequence takes at most
    layers: int  # that attend across
    heads: int
    kv_heads: int
    head_dim: int


class Family:
    """A checkpoint's family: a light half on its folder, a heavy half on the loaded model.

    The light half (sizes, token counts, preprocessing) runs in the server process and in media
    workers, which import neither torch nor transformers: what they make are arrays. The heavy half
    (tower, positions) runs in the engine.
    """

    architectures: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ()
    # how names of the towers' weights begin in the files, behind a `model.` that may come first
    tower_prefixes: ClassVar[tuple[str, ...]] = ()
    # of `modalities`, those whose items attend both ways: each token sees all of its own item
    both_ways: ClassVar[tuple[str, ...]] = ()
    # whether it is no decoder: a prompt attends both ways as a whole, and nothing is generated
    encoder_only: ClassVar[bool] = False
    # whether what it makes of a prompt's first token is a score of each of its labels
    classifies: ClassVar[bool] = False
    # how many places (patches or whole pictures) its tower is recorded for; none: it cannot be
    recorded_places: ClassVar[tuple[int, ...]] = ()

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config: dict[str, Any] = read_document(self.folder / "config.json")

    # light half: planning

    @property
    def available(self) -> tuple[str, ...]:
        """Those of `modalities` that this very checkpoint has a tower for."""
        return self.modalities

    def text_config(self) -> dict[str, Any]:
        """The decoder's part of config.json, with what transformers takes where it says nothing."""
        return self.config.get("text_config") or self.config

    def most_tokens(self, modality: str, max_len: int) -> int:
        """Placeholders of the largest item that a prompt of `max_len` tokens can hold."""
        raise KeyError(modality)

    def tower_places(self, modality: str, max_len: int, tokens: int) -> int:
        """Most patches or frames that are in a tower at once, in a step of that many tokens."""
        raise KeyError(modality)

    def tower_width(self, modality: str) -> tuple[int, int]:
        """Hidden and intermediate size of the layers of a modality's tower."""
        raise KeyError(modality)

    def state_sizes(self) -> StateSizes | None:
        """What its decoder keeps of items that it attends to across; None: all are embedded."""
        return None

    @property
    def patches_in_place(self) -> int:
        """Patches in each place that a recording of its tower has."""
        return 1

    def tower_heads(self, modality: str) -> int:
        """Heads that the layers of a modality's tower divide its hidden size among."""
        raise KeyError(modality)

    # light half: the server process and media workers

    def placeholder(self, modality: str) -> str:
        """The special token that stands for one embedding of `modality`."""
        raise KeyError(modality)

    def item_text(self, modality: str) -> str:
        """What stands for one item in a message whose parts are joined before the template."""
        return self.marker(modality)

    def marker(self, modality: str) -> str:
        """The special token by which the chat template marks an item's place."""
        return self.placeholder(modality)

    def spelled_out(self, modality: str) -> str:
        """What a marker stands for before the text is tokenized; has the placeholder once."""
        return self.marker(modality)

    def image_tokens(self, width: int, height: int) -> int:
        """Placeholders that an image takes. Raises ValueError for a size it cannot take."""
        raise KeyError("image")

    def preprocess_image(self, image: Image.Image) -> Arrays:
        """Arrays of one RGB image as they are cached and sent: pixels are still bytes."""
        raise KeyError("image")

    def sample_frames(self, total: int, fps: float, options: VideoOptions) -> list[int]:
        """Indices of the frames taken out of `total`, those that the family's processor takes."""
        raise KeyError("video")

    def video_tokens(self, frames: int, width: int, height: int, options: VideoOptions) -> int:
        """Placeholders of a video of that many frames. Raises ValueError for a size it refuses."""
        raise KeyError("video")

    def preprocess_video(
        self, frames: Iterable[Image.Image], count: int, options: VideoOptions
    ) -> Arrays:
        """Arrays of `count` RGB frames of one size, made while the frames come."""
        raise KeyError("video")

    def audio_rate(self) -> int:
        """Samples a second of the sound that the tower takes."""
        raise KeyError("audio")

    def audio_tokens(self, samples: int) -> int:
        """Placeholders of a sound. Raises ValueError for a length that it refuses."""
        raise KeyError("audio")

    @property
    def most_samples(self) -> int | None:
        """Samples of the longest sound that is one item; None: an item is of any length."""
        return None

    def item_states(self, modality: str) -> int:
        """States of an item that the decoder attends to across; 0: it has placeholders."""
        return 0

    def preprocess_audio(self, samples: NDArray[np.float32]) -> Arrays:
        """Arrays of mono `samples` at `audio_rate`, float32 from -1 to 1."""
        raise KeyError("audio")

    def embedding_grid(self, modality: str) -> str | None:
        """Name of the `(time, rows, columns)` to come with embeddings; None if none is needed."""
        return None

    def embedding_tokens(self, modality: str, grid: Sequence[int] | None) -> int:
        """Placeholders of one item that comes as embeddings.

        Raises ValueError for a grid that no item can have, KeyError for a modality not taken.
        """
        raise KeyError(modality)

    def unread(self, name: str) -> bool:
        """Whether nothing is made of a tensor of the checkpoint, whatever is asked for."""
        return False

    # heavy half: the engine

    def model_class(self) -> Any:
        """The class that transformers loads the checkpoint as."""
        import transformers  # only where a model is loaded

        return getattr(transformers, self.config["architectures"][0])

    def model_settings(self) -> dict[str, Any]:
        """What `model_class` is told besides its configuration."""
        return {}

    def key_mapping(self) -> dict[str, str] | None:
        """Patterns of weights' names in the files, and what `model_class` calls them."""
        return None

    def decoder(self, model: Any) -> nn.Module:
        """The stack that maps `inputs_embeds` to final hidden states."""
        return model.model

    def pooled_head(self, model: Any, states: torch.Tensor) -> torch.Tensor:
        """What is handed out of final hidden states that are to be pooled, `[rows, hidden]`."""
        return states

    def attend_by(self, model: Any, decoder: str, vision: str) -> None:
        """Have the decoder attend by one interface of transformers, towers for pictures by another.

        Whatever else there is attends by torch.
        """
        pictures = getattr(model.config, "vision_config", None) is not None
        parts = {"vision_config": vision} if pictures else {}
        nested = getattr(model.config, "text_config", None)
        attention: Any = {"text_config": decoder, **parts} if nested else decoder
        model.set_attn_implementation(attention)

    def cross_layers(self, model: Any) -> CrossLayers | None:
        """The decoder's layers that attend to the states of `state_sizes`; None: there are none."""
        return None

    def drop_towers(self, config: Any) -> None:
        """Change a transformers configuration to be built without the towers' layers."""

    def trim_towers(self, config: Any) -> None:
        """Change a transformers configuration to be built without what nothing looks at."""

    def tower_inputs(self, item: MediaItem, upload: Upload = stay) -> dict[str, torch.Tensor]:
        """A preprocessed item as the transformers processor gives it, float32, by its names.

        What is large is uploaded; sizes stay on the host, which asks for them.
        """
        raise KeyError(item.modality)

    def check_item(self, item: MediaItem) -> None:
        """Raise ValueError unless the tensors are what preparing an item of this length gives.

        What only the decoder's width tells of embeddings is for the engine to check.
        """
        raise ValueError(f"no {item.modality} is taken")

    def encode(
        self, model: nn.Module, items: list[MediaItem], upload: Upload = stay
    ) -> list[torch.Tensor]:
        """Embeddings of each item, `[item.length, hidden]`, in the model's dtype."""
        raise KeyError(items[0].modality)

    def places(self, items: list[MediaItem]) -> int:
        """Places that items take in a recording of their tower."""
        raise KeyError(items[0].modality)

    def tower_tensors(
        self, model: Any, items: list[MediaItem], upload: Upload = stay
    ) -> tuple[torch.Tensor, ...]:
        """All that the tower reads of items, on its device, `[places, ...]` each.

        Followed by zeros it is that of the same items: what is there then belongs to nobody.
        """
        raise KeyError(items[0].modality)

    def tower_work(self, model: Any, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Embeddings `[tokens, hidden]` of all places, one after another.

        What is computed depends on the number of places alone, and the host is asked for nothing.
        """
        raise ModelUnsupported(f"{type(self).__name__} has no tower that can be recorded")

    def positions(self, prompt_ids: list[int], media: list[MediaItem]) -> tuple[torch.Tensor, int]:
        """Prompt positions `[rows, tokens]` (1 row, or 3 for M-RoPE), and the offset after it.

        The token at index i after the prompt has position i + offset on every row.
        """
        import torch  # the light half of a text model does without

        return torch.arange(len(prompt_ids))[None], 0
