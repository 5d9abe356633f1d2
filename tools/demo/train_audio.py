"""Train the model that hears: `python -m tools.demo.train_audio --minutes 60 --out /folder`.

Sounds are made while training.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from engine.models.log_mel import LogMel
from engine.models.ultravox_model import UltravoxModel
from tools.demo import audio, audio_model, chat, training
from tools.demo.audio_questions import about_sound
from tools.demo.marks import UNLEARNED
from tools.demo.speech import Speaker
from tools.demo.training import Run


@dataclass(slots=True)
class Batch:
    """Chats padded to the right: `ids`, `labels` `[chats, tokens]`, and a spectrogram each."""

    ids: torch.Tensor
    labels: torch.Tensor
    features: list[torch.Tensor]  # [bands, frames]


def batches(
    tokenizer: PreTrainedTokenizerBase, size: int, seed: int | str, *, held_out: bool = False
) -> Iterator[Batch]:
    """An endless stream of them."""
    rng, log_mel = random.Random(seed), LogMel({}, audio_model.BANDS)
    placeholder = tokenizer.convert_tokens_to_ids(audio_model.PLACEHOLDER)
    with Speaker() as speaker:
        while True:
            ids, labels, features = [], [], []
            for _ in range(size):
                sound = audio_model.random_sound(rng, held_out=held_out)
                samples = audio.make(sound, rng, speaker)
                features.append(torch.from_numpy(log_mel.spectrogram(samples)))
                turn = rng.choice(about_sound(sound, rng))
                question = chat.asked(audio_model.PLACEHOLDER + turn.question)
                asked = chat.opening(None) + chat.USER + question
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


def train(run: Run) -> None:
    """Train as one of the processes; the first one writes the checkpoint."""
    model = audio_model.new_model(run.tokenizer)
    if run.arguments.start:
        model = UltravoxModel.from_pretrained(run.arguments.start, dtype=torch.float32)
    model.train()
    placeholder = run.tokenizer.convert_tokens_to_ids(audio_model.PLACEHOLDER)
    data = batches(run.tokenizer, run.examples, run.seed)

    def lesson(progress: float) -> tuple[torch.Tensor, dict[str, float]]:
        loss, right, whole = chat_loss(model, next(data), placeholder)
        return loss, {"loss": loss.item(), "tokens": right, "answers": whole}

    training.learn(run, model, lesson)
    data.close()  # the speaker ends
    if run.rank == 0:
        audio_model.write(model, run.tokenizer, run.arguments.out / "checkpoint")


def main() -> None:
    arguments = training.parser(__doc__, batch=48).parse_args()
    if arguments.device != "cpu":
        raise SystemExit("train_audio trains on the CPU: its batches stay there")
    training.start(train, audio_model.train_tokenizer, arguments)


if __name__ == "__main__":
    main()
