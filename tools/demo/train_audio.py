"""Train the model that hears: `python -m tools.demo.train_audio --minutes 60 --out /folder`.

The schedule, the optimizers and the way processes meet are those of `train`. Sounds are made while
training. The weights are written at the end, and a later run may start from them.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import spawn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from engine.models.log_mel import LogMel
from engine.models.ultravox_model import UltravoxModel
from tools.demo import audio, audio_model, chat
from tools.demo.audio_questions import about_sound
from tools.demo.batches import UNLEARNED
from tools.demo.speech import Speaker
from tools.demo.train import average_gradients, optimizers, share_of_rate

logger = logging.getLogger("train_audio")


@dataclass(slots=True)
class Batch:
    """Chats padded to the right: `ids`, `labels` `[chats, tokens]`, and a spectrogram each."""

    ids: torch.Tensor
    labels: torch.Tensor
    features: list[torch.Tensor]  # [bands, frames]


def batches(
    tokenizer: PreTrainedTokenizerBase, size: int, seed: int, *, held_out: bool = False
) -> Iterator[Batch]:
    """An endless stream of them."""
    rng, log_mel = random.Random(seed), LogMel({}, audio_model.BANDS)
    placeholder = tokenizer.convert_tokens_to_ids(audio_model.PLACEHOLDER)
    with Speaker() as speaker:
        while True:
            ids, labels, features = [], [], []
            for _ in range(size):
                sound = audio_model.random_sound(rng, held_out=held_out)
                samples = torch.from_numpy(audio.make(sound, rng, speaker))
                features.append(log_mel.spectrogram(samples))
                turn = rng.choice(about_sound(sound, rng))
                asked = chat.opening(None) + chat.question(audio_model.PLACEHOLDER + turn.question)
                prompt = tokenizer.encode(asked, add_special_tokens=False)
                at = prompt.index(placeholder)
                tokens = -(-features[-1].shape[1] // (2 * audio_model.STACK))
                prompt[at : at + 1] = [placeholder] * tokens
                answer = tokenizer.encode(chat.answer(turn.answer), add_special_tokens=False)
                ids.append(torch.tensor(prompt + answer))
                labels.append(torch.tensor([UNLEARNED] * len(prompt) + answer))
            yield Batch(
                pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id),
                pad_sequence(labels, batch_first=True, padding_value=UNLEARNED),
                features,
            )


def chat_loss(
    model: UltravoxModel, batch: Batch, placeholder: int
) -> tuple[torch.Tensor, float, float]:
    """Return the mean loss of the learned tokens, and the parts of them and of answers right."""
    heard = model.hear(batch.features, [one.shape[1] for one in batch.features])
    embedded = model.get_input_embeddings()(batch.ids)
    places = (batch.ids == placeholder)[..., None]
    embedded = embedded.masked_scatter(places, torch.cat(heard))
    hidden = model.language_model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    rows = batch.labels[:, 1:] != UNLEARNED
    logits, targets = model.language_model.lm_head(hidden[:, :-1][rows]), batch.labels[:, 1:][rows]
    found = logits.detach().argmax(-1) == targets
    whole = [bool(one.all()) for one in found.split(rows.sum(1).tolist())]
    right = float(found.float().mean())
    return cross_entropy(logits, targets), right, sum(whole) / len(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=48, help="chats a step, of all processes")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--start", type=Path, help="weights to start from, a written checkpoint")
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
    torch.set_num_threads(1)
    store = dist.FileStore(str(meeting), arguments.processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=arguments.processes)
    torch.manual_seed(arguments.seed)
    tokenizer = _tokenizer(arguments)
    model = audio_model.new_model(tokenizer)
    if arguments.start:
        model = UltravoxModel.from_pretrained(arguments.start, dtype=torch.float32)
    model.train()
    placeholder = tokenizer.convert_tokens_to_ids(audio_model.PLACEHOLDER)
    chosen = optimizers(model, nn.Module(), arguments.rate)
    rates = [group["lr"] for optimizer in chosen for group in optimizer.param_groups]
    logger.info("%.2f million parameters", model.num_parameters() / 1e6)
    chats = arguments.batch // arguments.processes
    data = batches(tokenizer, chats, 1000 * arguments.seed + rank)
    began, step, spent = time.monotonic(), 0, 0.0
    notes: list[tuple[float, float, float]] = []
    while spent < arguments.minutes * 60:
        share = share_of_rate(step, spent / (arguments.minutes * 60))
        groups = [group for optimizer in chosen for group in optimizer.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * share
        loss, right, whole = chat_loss(model, next(data), placeholder)
        loss.backward()
        spent = average_gradients(model, time.monotonic() - began)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in chosen:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step, notes = step + 1, [*notes, (loss.item(), right, whole)]
        if step % 20 == 0:
            means = torch.tensor(notes).mean(0).tolist()
            said = "step %d %.1f min loss %.4f tokens %.3f answers %.3f"
            logger.info(said, step, spent / 60, *means)
            notes = []
    if rank == 0:
        audio_model.write(model, tokenizer, arguments.out / "checkpoint")
        logger.info("%d steps, wrote %s", step, arguments.out / "checkpoint")
    data.close()  # the speaker ends
    dist.destroy_process_group()


def _tokenizer(arguments: argparse.Namespace) -> PreTrainedTokenizerBase:
    folder = arguments.start or arguments.out
    if not (folder / "tokenizer.json").is_file():
        audio_model.train_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


if __name__ == "__main__":
    main()
