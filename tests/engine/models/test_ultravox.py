"""Ultravox hears what transformers' parts hear, whatever is batched or cut."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import WhisperFeatureExtractor
from transformers.models.whisper import feature_extraction_whisper

from bench.reference import TOLERANCE, Recorder, compare, engine_options, greedy
from engine.core import Engine
from engine.errors import ModelUnsupported
from engine.layers.native import NativeDecoder
from engine.models.log_mel import LogMel
from engine.models.ultravox import Ultravox
from engine.models.ultravox_model import Tower
from engine.request import Request
from engine.running.exercise import largest_sounds
from tests.checkpoints import write_ultravox
from tests.engine.models.sounds import ComposedUltravox, prompt_with_sounds, sound, sound_item

CHECKOUT = Path(__file__).resolve().parents[3]
# Samples: shorter than two hops, odd and even numbers of frames, more than one chunk, more than two
LENGTHS = (100, 3_333, 8_000, 15_999, 25_600, 27_000, 52_345)
SOUNDS = [sound(samples, samples) for samples in LENGTHS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ultravox(tmp_path_factory.mktemp("ultravox"))


@pytest.fixture(scope="module")
def reference(folder: Path) -> ComposedUltravox:
    return ComposedUltravox(folder, SOUNDS)


def words(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(300, 500), k=count)


def requests_for(folder: Path, **options: Any) -> list[Request]:
    parts = [
        [words(7, 7)],
        [words(5, 1), SOUNDS[1], words(9, 2)],
        [SOUNDS[4], words(12, 3), SOUNDS[0], words(3, 4)],
        [words(30, 5), SOUNDS[6], SOUNDS[2], words(1, 6)],
        [SOUNDS[5], SOUNDS[3], words(4, 8)],
    ]
    prompts = [prompt_with_sounds(folder, one) for one in parts]
    return [
        Request(f"r{i}", tokens, greedy(5, **options), media)
        for i, (tokens, media) in enumerate(prompts)
    ]


@pytest.mark.parametrize("bands", [80, 128])
@pytest.mark.parametrize("samples", [1, 319, 320, 321, 16_000, 16_001, 123_456, 500_123])
@pytest.mark.parametrize("way", ["float64", "torch"])
def test_features_equal_those_of_whispers_extractor(
    way: str, bands: int, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It computes with torch in float32, which is four times as far from float64 as ours."""
    monkeypatch.setattr(feature_extraction_whisper, "is_torch_available", lambda: way == "torch")
    extractor = WhisperFeatureExtractor(feature_size=bands)
    waves = sound(samples, samples)
    theirs = extractor(
        [np.pad(waves, (0, max(0, 320 - samples)))],  # as Ultravox's processor does first
        sampling_rate=16_000,
        padding="longest",
        pad_to_multiple_of=160,
        truncation=False,
        return_tensors="pt",
    ).input_features[0]
    ours = torch.from_numpy(LogMel({}, bands).spectrogram(waves))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 if way == "float64" else 3e-5)
    louder = torch.from_numpy(LogMel({}, bands).spectrogram(waves * 2))
    assert (louder - theirs).abs().max() > 0.1


@pytest.mark.parametrize("samples", LENGTHS)
def test_a_sound_takes_as_many_tokens_as_it_gives_embeddings(
    samples: int, folder: Path, reference: ComposedUltravox
) -> None:
    heard = reference.embeddings(SOUNDS[LENGTHS.index(samples)])
    assert Ultravox(folder).audio_tokens(samples) == len(heard)


def test_thirty_seconds_take_188_tokens_and_each_second_beyond_some_six(
    folder: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    config = json.loads((tmp_path / "config.json").read_text())
    config["audio_config"]["max_source_positions"] = 1500
    (tmp_path / "config.json").write_text(json.dumps(config))
    family = Ultravox(tmp_path)
    counted = [family.audio_tokens(seconds * 16_000) for seconds in (1, 30, 31, 60)]
    assert counted == [7, 188, 195, 376]


@pytest.mark.parametrize("fuse", [True, False])
def test_a_packed_batch_of_clips_of_many_lengths_agrees_with_transformers(
    fuse: bool, folder: Path, reference: ComposedUltravox
) -> None:
    recorder = Recorder(Engine(engine_options(folder, fuse=fuse, max_tokens_per_step=512)))
    assert isinstance(recorder.engine._runner._decoder, NativeDecoder) == fuse
    requests = requests_for(folder)
    recorder.run(*requests)
    assert max(len(batch.slices) for batch in recorder.batches) == len(requests)
    assert compare(recorder, reference, requests) < TOLERANCE


def test_chunks_of_a_prompt_that_end_inside_a_clip_agree_at_every_token(
    folder: Path, reference: ComposedUltravox
) -> None:
    recorder = Recorder(Engine(engine_options(folder, max_tokens_per_step=7)))
    requests = requests_for(folder, prompt_logprobs=0)
    recorder.run(*requests)
    for request in requests:
        assert all((request.id, 0, p) in recorder.rows for p in range(len(request.prompt_ids)))
    cuts = [
        (item.start, piece.end, item.end)
        for batch in recorder.batches
        for piece in batch.slices
        for item in piece.sequence.media
    ]
    assert any(start < cut < end for start, cut, end in cuts)
    assert compare(recorder, reference, requests) < TOLERANCE


def test_a_silent_clip_changes_the_logits(folder: Path, reference: ComposedUltravox) -> None:
    """Control: with the sound taken away, the comparisons above must fail."""
    recorder = Recorder(Engine(engine_options(folder)))
    request = requests_for(folder)[1]
    request.media[0].tensors["features"].zero_()
    recorder.run(request)
    assert compare(recorder, reference, [request]) > 100 * TOLERANCE


def test_padding_that_is_attended_to_is_noticed(
    folder: Path, reference: ComposedUltravox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: without the mask, a clip beside a longer one must differ."""
    hear = Tower.hear

    def unmasked(self: Tower, chunks: list[torch.Tensor], lengths: list[int]) -> Any:
        return hear(self, chunks, [max(chunk.shape[1] for chunk in chunks)] * len(chunks))

    monkeypatch.setattr(Tower, "hear", unmasked)
    recorder = Recorder(Engine(engine_options(folder, max_tokens_per_step=512)))
    requests = requests_for(folder)
    recorder.run(*requests)
    assert compare(recorder, reference, requests) > 100 * TOLERANCE


def test_embeddings_of_many_clips_equal_those_of_each_alone(
    folder: Path, reference: ComposedUltravox
) -> None:
    """More chunks than go through the tower at once."""
    engine = Engine(engine_options(folder))
    family = Ultravox(folder)
    items = [sound_item(family, one) for one in SOUNDS * 2]
    embedded = engine._runner.media.encode(items)
    for samples, ours in zip(SOUNDS * 2, embedded, strict=True):
        torch.testing.assert_close(ours, reference.embeddings(samples), rtol=0, atol=1e-4)


def test_a_projector_of_versions_before_0_5_has_its_norm_at_the_end(tmp_path: Path) -> None:
    folder = write_ultravox(tmp_path / "old", ln_mid=False)
    recorder = Recorder(Engine(engine_options(folder)))
    request = requests_for(folder)[2]
    recorder.run(request)
    assert compare(recorder, ComposedUltravox(folder, SOUNDS), [request]) < TOLERANCE


def test_a_text_model_may_have_one_table_for_both_ends(tmp_path: Path) -> None:
    """As Llama-3.2-1B has."""
    folder = write_ultravox(tmp_path / "tied", tied=True)
    assert "language_model.lm_head.weight" not in load_file(folder / "model.safetensors")
    recorder = Recorder(Engine(engine_options(folder)))
    request = requests_for(folder)[1]
    recorder.run(request)
    assert compare(recorder, ComposedUltravox(folder, SOUNDS), [request]) < TOLERANCE


def test_without_sound_the_tower_stays_empty(folder: Path, reference: ComposedUltravox) -> None:
    recorder = Recorder(Engine(engine_options(folder, modalities=())))
    assert not recorder.engine._runner.loaded.model.audio_tower.layers
    request = Request("r", words(9, 1), greedy(3))
    recorder.run(request)
    assert compare(recorder, reference, [request]) < TOLERANCE


def test_a_tokenizer_of_its_own_may_have_the_placeholder(folder: Path, tmp_path: Path) -> None:
    assert Ultravox(folder).placeholder("audio") == "<|reserved_special_token_0|>"
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    tokens = json.loads((folder / "tokenizer.json").read_text())
    tokens["added_tokens"][2]["content"] = "<|audio|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokens))
    assert Ultravox(tmp_path).placeholder("audio") == "<|audio|>"
    tokens["added_tokens"][2]["content"] = "<|other|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(ModelUnsupported, match="stand for a sound"):
        Ultravox(tmp_path).placeholder("audio")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text_config": None}, "has no text_config"),
        ({"num_projector_layers": 2}, "num_projector_layers"),
        ({"audio_latency_block_size": 100}, "audio_latency_block_size"),
    ],
)
def test_what_is_not_served_is_refused(
    changes: dict[str, Any], said: str, folder: Path, tmp_path: Path
) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnsupported, match=said):
        Ultravox(tmp_path)


def test_dither_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"dither": 1e-4}))
    with pytest.raises(ModelUnsupported, match="dither"):
        Ultravox(tmp_path)


def test_the_largest_sound_of_a_prompt_fits_in_it(folder: Path) -> None:
    """What a card's memory is measured with."""
    options = engine_options(folder, max_len=300)
    (item,) = largest_sounds(options, Ultravox(folder))
    assert 250 < item.length <= 300
    (embedded,) = Engine(options)._runner.media.encode([item])
    assert len(embedded) == item.length


def test_librosa_is_loaded_where_spectrograms_are_made_and_not_before(folder: Path) -> None:
    told = f"""
import sys
import numpy as np
from engine.core import Engine
from engine.models.registry import family_for
from bench.reference import engine_options
family = family_for({str(folder)!r})
family.audio_tokens(16_000)
Engine(engine_options({str(folder)!r}))
assert "librosa" not in sys.modules and "numba" not in sys.modules
family.preprocess_audio(np.zeros(16_000, np.float32))
assert "librosa" in sys.modules
"""
    subprocess.run([sys.executable, "-c", told], check=True, timeout=120, cwd=CHECKOUT)
