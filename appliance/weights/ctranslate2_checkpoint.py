"""A Whisper of CTranslate2 written as a checkpoint folder of transformers.

Names: OpenNMT/CTranslate2, python/ctranslate2/converters/transformers.py (WhisperLoader), read the
other way round; a query's, key's and value's matrices are one there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from appliance.config.errors import ConfigurationError
from appliance.weights.ctranslate2_file import Ctranslate2File
from appliance.weights.progress import Progress
from engine.errors import ModelUnsupported
from engine.models.documents import read_document

UNFIT = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
SHARE_AFTER = 0.1  # of the work, once all is named
TASKS = ("translate", "transcribe")
MARKS = ("endoftext", "startoftranscript", "notimestamps", *TASKS)
FIRST_SECOND = 50  # steps of 0.02 s in which a transcript may begin, as openai/whisper has it


def write_checkpoint(file: Path, folder: Path, progress: Progress) -> None:
    """Write the model in `file` to `folder`, its tensors as they are.

    What is beside it, tokenizer.json and config.json, has the vocabulary and what is never said.
    Raises ConfigurationError for a damaged file, and for another model than Whisper.
    """
    read = Ctranslate2File(file)
    if read.kind != "WhisperSpec":
        raise ConfigurationError(
            f"'{file.name}' is a {read.kind[:100]} of CTranslate2, and only Whisper's are read"
        )
    try:
        tokenizer = read_document(file.with_name("tokenizer.json"))
        told = read_document(file.with_name("config.json"))
    except ModelUnsupported as error:
        raise ConfigurationError(str(error)) from error
    progress("converting weights", 0.0)
    try:
        tensors = {name: np.ascontiguousarray(array) for name, array in tensors_of(read)}
        tokens = {entry["content"]: int(entry["id"]) for entry in tokenizer["added_tokens"]}
        config = model_config(read, tensors, tokens)
        generation = generation_config(config, told, tokens)
    except UNFIT as error:
        raise ConfigurationError(f"'{file.name}' is not a whole Whisper, or is damaged") from error
    progress("converting weights", SHARE_AFTER)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(file.with_name("tokenizer.json"), folder / "tokenizer.json")
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {"eos_token": "<|endoftext|>", "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation)
    write_json(folder / "preprocessor_config.json", preprocessor_config(config))
    progress("converting weights", 1.0)


def tensors_of(read: Ctranslate2File) -> Iterator[tuple[str, NDArray[Any]]]:
    """All tensors by transformers' names. Raises KeyError for one that is not there."""
    arrays = read.arrays
    for side in ("encoder", "decoder"):
        yield f"model.{side}.embed_positions.weight", arrays[f"{side}/position_encodings/encodings"]
        yield from both(arrays, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for layer in range(layers(read, side)):
            there, here = f"{side}/layer_{layer}", f"model.{side}.layers.{layer}"
            yield from attention(arrays, f"{there}/self_attention", f"{here}.self_attn", 3)
            if side == "decoder":
                yield from attention(arrays, f"{there}/attention", f"{here}.encoder_attn", 2)
            yield from both(arrays, f"{there}/ffn/layer_norm", f"{here}.final_layer_norm")
            yield from both(arrays, f"{there}/ffn/linear_0", f"{here}.fc1")
            yield from both(arrays, f"{there}/ffn/linear_1", f"{here}.fc2")
    for name in ("conv1", "conv2"):
        yield from both(arrays, f"encoder/{name}", f"model.encoder.{name}")
    yield "model.decoder.embed_tokens.weight", arrays["decoder/embeddings/weight"]


def attention(
    arrays: dict[str, NDArray[Any]], there: str, here: str, together: int
) -> Iterator[tuple[str, NDArray[Any]]]:
    """An attention's norm and products: `together` of query, key and value are one matrix."""
    yield from both(arrays, f"{there}/layer_norm", f"{here}_layer_norm")
    named = ("q_proj", "k_proj", "v_proj")[3 - together :]
    first = "linear_0"
    if together == 2:
        yield from both(arrays, f"{there}/linear_0", f"{here}.q_proj")
        first = "linear_1"
    for kind in ("weight", "bias"):
        parts = np.split(arrays[f"{there}/{first}/{kind}"], together)
        for name, part in zip(named, parts, strict=True):
            if (name, kind) != ("k_proj", "bias"):  # Whisper's keys have none; here it is zeros
                yield f"{here}.{name}.{kind}", part
    yield from both(arrays, f"{there}/linear_{4 - together}", f"{here}.out_proj")


def both(
    arrays: dict[str, NDArray[Any]], there: str, here: str
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Weight and bias, which a norm calls gamma and beta."""
    norm = f"{there}/gamma" in arrays
    for kind, other in (("weight", "gamma"), ("bias", "beta")):
        yield f"{here}.{kind}", arrays[f"{there}/{other if norm else kind}"]


def layers(read: Ctranslate2File, side: str) -> int:
    """How many a side has, counted from 0 on."""
    count = 0
    while f"{side}/layer_{count}/ffn/linear_0/weight" in read.arrays:
        count += 1
    if not count:
        raise KeyError(side)
    return count


def model_config(
    read: Ctranslate2File, tensors: dict[str, NDArray[Any]], tokens: dict[str, int]
) -> dict[str, Any]:
    """config.json, by the shapes of what is there."""
    encoded = tensors["model.encoder.embed_positions.weight"]
    end, start = tokens["<|endoftext|>"], tokens["<|startoftranscript|>"]
    config: dict[str, Any] = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "activation_function": "gelu",
        "d_model": encoded.shape[1],
        "max_source_positions": encoded.shape[0],
        "max_target_positions": len(tensors["model.decoder.embed_positions.weight"]),
        "num_mel_bins": tensors["model.encoder.conv1.weight"].shape[1],
        "vocab_size": len(tensors["model.decoder.embed_tokens.weight"]),
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
        "dtype": str(encoded.dtype),
    }
    for side in ("encoder", "decoder"):
        config[f"{side}_layers"] = layers(read, side)
        config[f"{side}_attention_heads"] = read.number(f"{side}/num_heads")
        config[f"{side}_ffn_dim"] = len(tensors[f"model.{side}.layers.0.fc1.weight"])
    config["num_hidden_layers"] = config["encoder_layers"]
    return config


def generation_config(
    config: dict[str, Any], told: dict[str, Any], tokens: dict[str, int]
) -> dict[str, Any]:
    """generation_config.json: languages and tasks by their tokens, and what is never said."""
    ids = {name: tokens[f"<|{name}|>"] for name in MARKS}
    between = range(ids["startoftranscript"] + 1, min(ids[task] for task in TASKS))
    languages = {text: index for text, index in tokens.items() if index in between}
    whole = {name: [int(index) for index in told[f"{name}"]] for name in SAID}
    return {
        **{name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "decoder_start_token_id": config["decoder_start_token_id"],
        "is_multilingual": len(languages) > 1,
        "lang_to_id": languages,
        "task_to_id": {task: ids[task] for task in TASKS},
        "no_timestamps_token_id": ids["notimestamps"],
        "max_initial_timestamp_index": FIRST_SECOND,
        "max_length": config["max_target_positions"],
        "suppress_tokens": whole["suppress_ids"],
        "begin_suppress_tokens": whole["suppress_ids_begin"],
        "alignment_heads": told.get("alignment_heads"),
        "return_timestamps": False,
    }


SAID = ("suppress_ids", "suppress_ids_begin")


def preprocessor_config(config: dict[str, Any]) -> dict[str, Any]:
    """preprocessor_config.json: 16 kHz, 100 frames a second, two of them a state."""
    seconds = config["max_source_positions"] * 2 // 100
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": config["num_mel_bins"],
        "sampling_rate": 16_000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": seconds,
        "n_samples": seconds * 16_000,
        "nb_max_frames": seconds * 100,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
