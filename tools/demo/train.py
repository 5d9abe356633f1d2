"""Train the demo model: `python -m tools.demo.train --out /folder`.

First the tower learns alone, from labels of every patch: what covers it, in which colour. Then the
decoder learns to chat, and the tower goes on slowly. Data is made while training.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    linear,
    smooth_l1_loss,
)
from transformers import Qwen2VLForConditionalGeneration

from tools.demo import checkpoint, training
from tools.demo.batches import Batch, Batches
from tools.demo.encoding import MOST_TURNS
from tools.demo.finding import find_by_name
from tools.demo.marks import CLASSES, COUNTED, FOUND, MOST_COUNTED, UNLEARNED, WORDS
from tools.demo.tokenizer import train_tokenizer
from tools.demo.training import Run

NOTHING_WEIGHS = 0.3  # most patches are covered by nothing
SHOWN = (
    "shape",
    "character",
    "ordinal",
    "motion",
    "level",
    "place",
    "size",
)  # labels whose figures are printed
CHANGING = {
    "colour": "later colour",
    "later colour": "colour",
    "background": "later background",
    "later background": "background",
}  # in the other frame of a pair
SIGHT_WEIGHS = 0.2  # beside the chat
GRASP_WEIGHS = 0.2
MOST_PLACES = 12  # rows, columns, pictures
TO_SEE = {"look": 4, "count": 2, "place": 5, "read": 4, "read many": 2, "video": 3, "colours": 2}
HEADS = "heads.safetensors"  # what is used in training alone, to start from beside the weights
FITTED = 12  # batches of as many examples
SETTLES = 0.2  # part of the tower's own time in which its rate falls
MOVES = 4  # the tower in one of so many steps, while it chats
SEEN_AT_ONCE = 2.5  # times as many pictures as examples to chat about in a step


class Sight(nn.Module):
    """Reads off the tower's output what lies at each patch; used in training alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.read = nn.Linear(width, checkpoint.MERGE**2 * sum(CLASSES.values()))
        self.count = nn.Linear(width, COUNTED)
        self.word = nn.Parameter(torch.full((len(WORDS),), -3.0))

    def forward(self, seen: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return logits `[patches, classes]` by label, for `seen` `[tokens, width]`."""
        logits = self.read(seen).view(-1, sum(CLASSES.values()))
        return dict(zip(CLASSES, logits.split(list(CLASSES.values()), dim=-1), strict=True))


def sight_loss(
    sight: Sight, seen: torch.Tensor, words: torch.Tensor, batch: Batch
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss of the labels, and what part of the covered patches is right.

    `words` `[WORDS, width]` are the embeddings of what names things. A token that shows a thing
    is to be like its name's: then one and the same attention finds by any name, and says any.
    """
    loss, right = torch.zeros((), device=seen.device), {}
    for at, (name, logits) in enumerate(sight(seen).items()):
        targets = batch.seen[:, at]
        weights = torch.ones(CLASSES[name], device=seen.device)
        if "background" not in name:
            weights[0] = NOTHING_WEIGHS
        loss = loss + cross_entropy(logits, targets, weights)
        if name in CHANGING:
            # few patches show two colours, one in each frame: they weigh as much as all others
            changed = targets != batch.seen[:, list(CLASSES).index(CHANGING[name])]
            loss = loss + cross_entropy(logits[changed], targets[changed], reduction="sum") / (
                changed.sum().clamp(min=1)
            )
        if name in SHOWN:
            found = logits.detach().argmax(-1) == targets
            right[name] = float(found[targets > 0].float().mean())
    named = binary_cross_entropy_with_logits(linear(seen, words, sight.word), batch.words)
    counted = smooth_l1_loss(sight.count(seen), batch.held)
    right |= {"named": named.item(), "counted": counted.item()}
    return loss + 10 * named + 10 * counted, right


class Grasp(nn.Module):
    """Reads off the decoder where each token of a picture lies, what a scene has of everything and
    which colours a clip shows, and what its words name in them; used in training alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.place = nn.Linear(width, 3 * MOST_PLACES)
        self.counts = nn.Linear(width, COUNTED * MOST_COUNTED)
        self.turns = nn.Linear(width, MOST_TURNS * CLASSES["colour"])
        self.found = nn.Linear(width, sum(FOUND))
        self.before = nn.Linear(width, CLASSES["colour"])
        self.nth = nn.Linear(width, 2 * (MOST_TURNS + 1))
        self.spelled = nn.Linear(width, 2 * CLASSES["character"])

    def forward(self, states: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
        """Return the loss, of the decoder's states `[examples, tokens, width]` before each layer:
        for what a token shows after two, for the rest after three, so that the last can use it."""
        known = batch.places[..., 0] != UNLEARNED
        numbered = batch.nth[..., 0] != UNLEARNED
        written = (batch.spelled != UNLEARNED).any(-1)
        places = self.place(states[2][known]).view(-1, MOST_PLACES)
        behind = states[3][torch.arange(len(batch.ends), device=known.device), batch.ends]
        return (
            cross_entropy(places, batch.places[known].flatten())
            + _known_entropy(self.before(states[2][numbered]), batch.before[numbered][:, None])
            + _known_entropy(self.nth(states[3][numbered]), batch.nth[numbered])
            + _known_entropy(self.spelled(states[2][written]), batch.spelled[written])
            + _known_entropy(self.counts(behind), batch.counts)
            + _known_entropy(self.turns(behind), batch.turns)
            + self._found_entropy(states[3], batch)
        )

    def _found_entropy(self, states: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What every name in a chat stands for is known at its token."""
        named = (batch.found != UNLEARNED).any(-1)
        logits = self.found(states[named]).split(list(FOUND), dim=-1)
        each = zip(logits, batch.found[named].unbind(-1), strict=True)
        return torch.stack([_known_entropy(part, known[:, None]) for part, known in each]).sum()


def _known_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean of the targets `[rows, parts]` that are to be learned, 0 without any."""
    flat = targets.flatten()
    classes = logits.shape[-1] // targets.shape[-1]
    entropy = cross_entropy(
        logits.reshape(len(flat), classes), flat, ignore_index=UNLEARNED, reduction="sum"
    )
    return entropy / (flat != UNLEARNED).sum().clamp(min=1)


def look(model: Qwen2VLForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """Return the tower's output `[tokens, width]` for all pictures and clips of a batch."""
    return model.model.visual(batch.patches, grid_thw=batch.grids).pooler_output


class PatchProduct(nn.Module):
    """The tower's first layer as one product, of the same weights: a convolution whose windows do
    not overlap takes ten times as long on a CPU."""

    def __init__(self, proj: nn.Conv3d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return linear(patches, self.proj.weight.flatten(1))


def states_of(
    model: Qwen2VLForConditionalGeneration, batch: Batch, seen: torch.Tensor
) -> Sequence[torch.Tensor]:
    """Return the decoder's states `[examples, tokens, width]` before each layer and after all."""
    config = model.config
    embedded = model.model.language_model.embed_tokens(batch.ids)
    pads = (batch.ids == config.image_token_id) | (batch.ids == config.video_token_id)
    embedded = embedded.masked_scatter(pads[..., None], seen)
    made = model.model.language_model(
        inputs_embeds=embedded,
        attention_mask={"full_attention": batch.visible},
        position_ids=batch.positions,
        use_cache=False,
        output_hidden_states=True,
    )
    return made.hidden_states


def logits_of(
    model: Qwen2VLForConditionalGeneration, batch: Batch, seen: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """Return logits `[rows, vocabulary]` of the positions that `rows` `[examples, tokens]`
    selects."""
    return model.lm_head(states_of(model, batch, seen)[-1][rows])


def chat_loss(
    model: Qwen2VLForConditionalGeneration, grasp: Grasp, batch: Batch, seen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Return the mean loss of the learned tokens, that of the grasp, and for each skill the part
    of the answers whose every token is right behind those before it."""
    targets = torch.full_like(batch.labels, UNLEARNED)
    targets[:, :-1] = batch.labels[:, 1:]
    rows = targets != UNLEARNED
    states = states_of(model, batch, seen)
    logits = model.lm_head(states[-1][rows])
    right = torch.ones(len(batch.skills), device=logits.device)
    answers = batch.answers[:, 1:][rows[:, :-1]]
    found = (logits.detach().argmax(-1) == targets[rows]).float()
    right.scatter_reduce_(0, answers, found, "amin")
    of_skill: dict[str, list[float]] = defaultdict(list)
    for skill, is_right in zip(batch.skills, right.tolist(), strict=True):
        of_skill[skill].append(is_right)
    figures = {skill: sum(each) / len(each) for skill, each in sorted(of_skill.items())}
    return cross_entropy(logits, targets[rows]), grasp(states, batch), figures


def train(run: Run) -> None:
    """Train as one of the processes; the first one writes the checkpoint."""
    arguments, device = run.arguments, torch.device(run.arguments.device)
    model = _model(run)
    model.model.visual.patch_embed = PatchProduct(model.model.visual.patch_embed.proj)
    model.to(device).train()
    width = model.config.text_config.hidden_size
    sight, grasp = Sight(width).to(device), Grasp(width).to(device)
    heads = nn.ModuleDict({"sight": sight, "grasp": grasp})
    if arguments.start and (arguments.start / HEADS).is_file():
        load_model(heads, arguments.start / HEADS)
    words = torch.tensor(run.tokenizer.convert_tokens_to_ids([spelled(word) for word in WORDS]))
    words = words.to(device)
    pictures = iter(Batches(run.tokenizer, int(run.examples * SEEN_AT_ONCE), run.seed, TO_SEE, 1))
    chats = iter(Batches(run.tokenizer, run.examples, run.seed))
    clips = iter(Batches(run.tokenizer, run.examples, f"{run.seed} clips", {"colours": 1}, 1))

    # a run that goes on with chats has its start already
    is_told = run.progress >= arguments.see
    steps = 0

    def lesson(progress: float) -> tuple[torch.Tensor, dict[str, float]]:
        nonlocal is_told, steps
        talking = progress >= arguments.see
        if talking and not is_told:
            # the same in all processes, whose weights must stay alike
            some = islice(Batches(run.tokenizer, FITTED, "start", TO_SEE, 1), FITTED)
            looked = [(batch, look(model, batch)) for batch in (b.to(device) for b in some)]
            find_by_name(model, run.tokenizer, looked)
        is_told = talking
        steps += 1
        still = talking and steps % MOVES > 0
        batch = next(chats if talking else pictures).to(device)
        with torch.set_grad_enabled(not still):
            seen = look(model, batch)
            loss, figures = sight_loss(sight, seen, model.lm_head.weight[words], batch)
        if talking:
            chat, grasped, right = chat_loss(model, grasp, batch, seen)
            loss = loss * SIGHT_WEIGHS + grasped * GRASP_WEIGHS + chat
            if not still:  # what is hardest to see
                clip = next(clips).to(device)
                known, _ = sight_loss(sight, look(model, clip), model.lm_head.weight[words], clip)
                loss = loss + known * SIGHT_WEIGHS
            figures |= {"grasp": grasped.item(), "chat": chat.item(), **right}
        return loss, {"loss": loss.item(), **figures}

    def share(progress: float) -> float:
        if progress >= arguments.see:
            return float(arguments.tower_rate)
        return min(1.0, 0.1 + (arguments.see - progress) / (SETTLES * arguments.see))

    training.learn(run, nn.ModuleList([model, sight, grasp]), lesson, "visual", share)
    if run.rank == 0:
        checkpoint.write(model, run.tokenizer, arguments.out / "checkpoint")
        save_model(heads, str(arguments.out / HEADS))


def spelled(word: str) -> str:
    """Return a word as the vocabulary writes it, a space before it as "Ġ"."""
    return word.replace(" ", "\u0120")


def _model(run: Run) -> Qwen2VLForConditionalGeneration:
    model = checkpoint.new_model(run.tokenizer)
    if run.arguments.start:
        started = Qwen2VLForConditionalGeneration.from_pretrained(run.arguments.start)
        model.load_state_dict(started.state_dict())
    model.config._attn_implementation = "sdpa"
    return model


def main() -> None:
    parser = training.parser(__doc__, batch=16)
    parser.add_argument("--see", type=float, default=0.2, help="part of it for the tower alone")
    parser.add_argument(
        "--tower-rate", type=float, default=0.2, help="share of the rate, while it chats"
    )
    training.start(train, train_tokenizer, parser.parse_args())


if __name__ == "__main__":
    main()
