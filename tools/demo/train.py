"""Train the demo model: `python -m tools.demo.train --minutes 100 --out /folder`.

First the tower learns alone, from labels of every patch: what covers it, in which colour. Then the
decoder learns to chat while the tower stands still, then all together. Goes on from the newest
state in the folder. The learning rate rises, stays, and falls over the last part of the time, so
that a run can be cut short or lengthened. Data is made while training.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import spawn
from torch.nn.functional import cross_entropy, linear
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2VLForConditionalGeneration

from tools.demo import checkpoint
from tools.demo.batches import UNLEARNED, Batch, Batches
from tools.demo.marks import CLASSES, COUNTED
from tools.demo.muon import Muon
from tools.demo.tokenizer import train_tokenizer

logger = logging.getLogger("train")

STATE = "state.pt"
WARM_UP_STEPS = 60
FALL = 0.35  # of the time, at the end
NOTHING_WEIGHS = 0.3  # most patches are covered by nothing
SIGHT_WEIGHS = 0.1  # beside the chat
GRASP_WEIGHS = 0.2
MOST_PLACES = 12  # rows, columns, pictures
MOST_COUNTED = 10
TO_SEE = {"look": 2, "count": 4, "place": 2, "read": 3, "read many": 4}
SEEN_AT_ONCE = 1.5  # times as many pictures as chats in a step


class Sight(nn.Module):
    """Reads off the tower's output what lies at each patch; used in training alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.read = nn.Linear(width, checkpoint.MERGE**2 * sum(CLASSES.values()))

    def forward(self, seen: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return logits `[patches, classes]` by label, for `seen` `[tokens, width]`."""
        logits = self.read(seen).view(-1, sum(CLASSES.values()))
        return dict(zip(CLASSES, logits.split(list(CLASSES.values()), dim=-1), strict=True))


def sight_loss(sight: Sight, seen: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, list[float]]:
    """Return the loss of the labels, and the part of covered patches whose shape and character
    are right."""
    loss, right = torch.zeros((), device=seen.device), []
    for at, (name, logits) in enumerate(sight(seen).items()):
        targets = batch.seen[:, at]
        weights = torch.ones(CLASSES[name], device=seen.device)
        if name != "background":
            weights[0] = NOTHING_WEIGHS
        loss = loss + cross_entropy(logits, targets, weights, ignore_index=UNLEARNED)
        if name in ("shape", "character"):
            found = logits.detach().argmax(-1) == targets
            right.append(float(found[targets > 0].float().mean()))
    return loss, right


class Grasp(nn.Module):
    """Reads off the decoder where each token of a picture lies and what a scene has of everything;
    used in training alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.place = nn.Linear(width, 3 * MOST_PLACES)
        self.counts = nn.Linear(width, COUNTED * MOST_COUNTED)

    def forward(self, early: torch.Tensor, late: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss, of the decoder's states `[chats, tokens, width]` after two layers, for
        the places, and after all, for the counts."""
        known = batch.places[..., 0] != UNLEARNED
        places = self.place(early[known]).view(-1, MOST_PLACES)
        behind = late[torch.arange(len(batch.ends), device=late.device), batch.ends]
        counts = self.counts(behind).view(-1, MOST_COUNTED)
        counted = batch.counts.flatten()
        known_counts = (counted != UNLEARNED).sum().clamp(min=1)
        return (
            cross_entropy(places, batch.places[known].flatten())
            + cross_entropy(counts, counted, ignore_index=UNLEARNED, reduction="sum") / known_counts
        )


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the decoder's states `[chats, tokens, width]` after two layers and after all."""
    config = model.config
    embedded = model.model.language_model.embed_tokens(batch.ids)
    pads = (batch.ids == config.image_token_id) | (batch.ids == config.video_token_id)
    embedded = embedded.masked_scatter(pads[..., None], seen)
    # padding stands at the right, so a causal model never looks at it
    made = model.model.language_model(
        inputs_embeds=embedded,
        position_ids=batch.positions,
        use_cache=False,
        output_hidden_states=True,
    )
    return made.hidden_states[2], made.last_hidden_state


def logits_of(
    model: Qwen2VLForConditionalGeneration, batch: Batch, seen: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """Return logits `[rows, vocabulary]` of the positions that `rows` `[chats, tokens]` selects."""
    return model.lm_head(states_of(model, batch, seen)[1][rows])


def chat_loss(
    model: Qwen2VLForConditionalGeneration, grasp: Grasp, batch: Batch, seen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the mean loss of the learned tokens, that of the grasp, and the part of the tokens
    that is right."""
    targets = torch.full_like(batch.labels, UNLEARNED)
    targets[:, :-1] = batch.labels[:, 1:]
    rows = targets != UNLEARNED
    early, late = states_of(model, batch, seen)
    logits = model.lm_head(late[rows])
    right = (logits.detach().argmax(-1) == targets[rows]).float().mean()
    return cross_entropy(logits, targets[rows]), grasp(early, late, batch), float(right)


def optimizers(model: nn.Module, heads: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for the rest.

    The first layer of the tower is one of the matrices: AdamW moves each of its 1,176 weights a
    patch alike, and on a patch of one colour these moves add up.
    """
    named = [*model.named_parameters(), *heads.named_parameters()]
    matrices = [value for name, value in named if value.ndim > 1 and "embed_tokens" not in name]
    chosen = {id(value) for value in matrices}
    rest = [value for _, value in named if id(value) not in chosen]
    return [
        Muon(matrices, lr=rate, weight_decay=0.05),
        torch.optim.AdamW(rest, lr=rate / 2, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def share_of_rate(step: int, progress: float) -> float:
    rising = min(1.0, (step + 1) / WARM_UP_STEPS)
    falling = min(1.0, max(0.0, (1.0 - progress) / FALL))
    return rising * max(falling, 0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and result")
    parser.add_argument("--minutes", type=float, default=100, help="training time in all")
    parser.add_argument("--see", type=float, default=0.3, help="part of it for the tower alone")
    parser.add_argument("--talk", type=float, default=0.2, help="part of it with a still tower")
    parser.add_argument("--batch", type=int, default=64, help="chats a step, of all processes")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2, help="of one thread each, on a CPU")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (with --processes 1)")
    parser.add_argument("--start", type=Path, help="weights to start from, a written checkpoint")
    parser.add_argument("--blind", action="store_true", help="but with a fresh tower")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    _tokenizer(arguments)  # made once, before all read it
    meeting = arguments.out / "meeting"
    meeting.unlink(missing_ok=True)
    spawn(train, (arguments, meeting), nprocs=arguments.processes)


def train(rank: int, arguments: argparse.Namespace, meeting: Path) -> None:
    """Train as one of the processes; they add up their gradients, the first one writes."""
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING, format="%(asctime)s %(message)s"
    )
    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # processes of one thread bear with busy cores; barriers do not
    store = dist.FileStore(str(meeting), arguments.processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=arguments.processes)
    torch.manual_seed(arguments.seed)
    tokenizer = _tokenizer(arguments)
    model = checkpoint.new_model(tokenizer)
    if arguments.start:
        started = Qwen2VLForConditionalGeneration.from_pretrained(arguments.start)
        if arguments.blind:
            started.model.visual = model.model.visual
        model.load_state_dict(started.state_dict())
    model.config._attn_implementation = "sdpa"
    model.model.visual.patch_embed = PatchProduct(model.model.visual.patch_embed.proj)
    model.to(device).train()
    width = model.config.text_config.hidden_size
    sight, grasp = Sight(width).to(device), Grasp(width).to(device)
    learned = nn.ModuleList([model, sight, grasp])
    chosen = optimizers(model, nn.ModuleList([sight, grasp]), arguments.rate)
    for optimizer in chosen:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    step, spent = _resume(arguments.out, learned, chosen)
    logger.info("%.2f million parameters, from step %d", model.num_parameters() / 1e6, step)
    chats = arguments.batch // arguments.processes
    seed = arguments.seed + 1000 * step + rank
    pictures = iter(Batches(tokenizer, int(chats * SEEN_AT_ONCE), seed, TO_SEE))
    data = iter(Batches(tokenizer, chats, seed))
    began, saved = time.monotonic() - spent, time.monotonic()
    notes: list[list[float]] = []
    while spent < arguments.minutes * 60:
        progress = spent / (arguments.minutes * 60)
        share = share_of_rate(step, progress)
        for optimizer in chosen:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share
        talking = progress >= arguments.see
        still = talking and progress < arguments.see + arguments.talk
        batch = next(data if talking else pictures).to(device)
        with torch.set_grad_enabled(not still):
            seen = look(model, batch)
            loss, note = sight_loss(sight, seen, batch)
        if talking:
            chat, grasped, right = chat_loss(model, grasp, batch, seen)
            note = [*note, right, grasped.item(), chat.item()]
            loss = loss * SIGHT_WEIGHS + grasped * GRASP_WEIGHS + chat
        loss.backward()
        spent = average_gradients(learned, time.monotonic() - began)
        nn.utils.clip_grad_norm_(learned.parameters(), 1.0)
        for optimizer in chosen:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step, notes = step + 1, [*notes, [loss.item(), *note]]
        if step % 20 == 0:
            means = torch.tensor([each for each in notes if len(each) == len(notes[-1])]).nanmean(0)
            shown = zip(
                ("loss", "shapes", "characters", "words", "grasp", "chat"), means, strict=False
            )
            said = " ".join(f"{name} {mean:.4f}" for name, mean in shown)
            logger.info("step %d %.1f min rate %.5f %s", step, spent / 60,
                        arguments.rate * share, said)  # fmt: skip
            notes = []
        if time.monotonic() - saved > 300:
            _save(rank, arguments.out, learned, chosen, step, spent)
            saved = time.monotonic()
    _save(rank, arguments.out, learned, chosen, step, spent)
    if rank == 0:
        checkpoint.write(model, tokenizer, arguments.out / "checkpoint")
        about = {"steps": step, "minutes": round(spent / 60, 1), "chats": step * arguments.batch,
                 "parameters": model.num_parameters()}  # fmt: skip
        (arguments.out / "training.json").write_text(json.dumps(about, indent=2) + "\n")
        logger.info("wrote %s", arguments.out / "checkpoint")
    dist.destroy_process_group()


def average_gradients(model: nn.Module, spent: float) -> float:
    """Give all processes the mean gradient; return the first one's `spent`, for all alike."""
    clock = torch.tensor([spent if dist.get_rank() == 0 else 0.0])
    held = [value.grad for value in model.parameters() if value.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in held] + [clock.to(held[0].device)])
    dist.all_reduce(flat)
    parts = flat[:-1].split([gradient.numel() for gradient in held])
    for gradient, part in zip(held, parts, strict=True):
        gradient.copy_(part.view_as(gradient) / dist.get_world_size())
    return float(flat[-1])


def _tokenizer(arguments: argparse.Namespace) -> PreTrainedTokenizerBase:
    folder = arguments.start or arguments.out
    if not (folder / "tokenizer.json").is_file():
        train_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def _resume(
    folder: Path, model: nn.Module, chosen: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    """Load the newest state; return the steps and seconds that it was trained."""
    if not (folder / STATE).is_file():
        return 0, 0.0
    state = torch.load(folder / STATE, weights_only=True)
    model.load_state_dict(state["model"])
    held = folder / f"optimizers-{dist.get_rank()}.pt"
    if held.is_file():
        for optimizer, momenta in zip(chosen, torch.load(held, weights_only=True), strict=True):
            optimizer.load_state_dict(momenta)
    return state["step"], state["spent"]


def _save(
    rank: int,
    folder: Path,
    model: nn.Module,
    chosen: list[torch.optim.Optimizer],
    step: int,
    spent: float,
) -> None:
    """Write what is needed to go on; each process holds the momentum of its own matrices."""
    for name, content in (
        (f"optimizers-{rank}.pt", [optimizer.state_dict() for optimizer in chosen]),
        (STATE, {"model": model.state_dict(), "step": step, "spent": spent}),
    ):
        if name != STATE or rank == 0:
            torch.save(content, folder / f"{name}.partial")
            (folder / f"{name}.partial").replace(folder / name)


if __name__ == "__main__":
    main()
