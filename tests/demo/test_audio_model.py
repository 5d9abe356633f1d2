"""What the model that hears is trained on is what the server would give it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from appliance.prompt.build import build_chat
from appliance.prompt.template import ChatTemplate
from appliance.prompt.tokenizer import Tokenizer
from bench.reference import Recorder, engine_options, greedy
from engine.core import Engine
from engine.models.ultravox import Ultravox
from engine.request import MediaItem, Request
from tools.demo import audio_model, train_audio
from tools.demo.marks import UNLEARNED


def test_batches_are_the_prompts_and_the_sounds_that_the_server_makes(tmp_path: Path) -> None:
    tokenizer = audio_model.train_tokenizer(200)
    torch.manual_seed(0)
    model = audio_model.new_model(tokenizer)
    data = train_audio.batches(tokenizer, 6, seed=1)
    batch = next(data)
    data.close()
    placeholder = tokenizer.convert_tokens_to_ids(audio_model.PLACEHOLDER)
    loss, _, _ = train_audio.chat_loss(model, batch, placeholder)
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
    audio_model.write(model, tokenizer, tmp_path)

    family, server = Ultravox(tmp_path), Tokenizer(tmp_path)
    template = ChatTemplate(None, server, family)
    recorder = Recorder(Engine(engine_options(tmp_path)))
    losses = []
    for row, features in enumerate(batch.features):
        learned = (batch.labels[row] != UNLEARNED).nonzero()[:, 0]
        prompt = batch.ids[row, : learned[0]].tolist()
        answer = batch.ids[row, learned[0] : learned[-1] + 1].tolist()
        tokens = prompt.count(placeholder)
        assert tokens == family.audio_tokens(160 * features.shape[1])
        question = server.decode([one for one in prompt if one != placeholder])
        question = question.split("user\n")[1].split("<|im_end|>")[0]
        parts = [{"type": "input_audio"}, {"type": "text", "text": question}]
        item = SimpleNamespace(modality="audio", tokens=tokens)
        built = build_chat(template, [{"role": "user", "content": parts}], [item])
        assert built.token_ids == prompt
        (span,) = built.spans
        media = MediaItem("audio", bytes([row]), span.start, tokens, {"features": features})
        request = Request(f"r{row}", prompt + answer, greedy(1, prompt_logprobs=0), [media])
        recorder.run(request)
        noted = next(o for o in recorder.outputs if o.request_id == request.id).prompt_logprobs
        assert noted is not None
        losses += [-entry.logprob for entry in noted[len(prompt) :] if entry is not None]
    served = sum(losses) / len(losses)
    assert abs(served - loss.item()) < 0.02  # written in bfloat16
