"""What holding answers to grammars is worth, and what it costs.

    python -m bench.grammars --checkpoint FOLDER [--suite FOLDER/tests/draft2020-12]

Cost: compiling a grammar, and masks of 32 answers to different schemas, beside a step of the model.
With the files of json-schema-org/JSON-Schema-Test-Suite: how many of its schemas are taken, whether
what a model that knows nothing makes of them is valid by the jsonschema package, and whether the
suite's own valid values may come and its invalid ones may not.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import torch
from tokenizers import Tokenizer

from appliance.errors import ApplianceError
from appliance.generation.structure import Structure, grammar_of
from engine.models.end_tokens import end_tokens
from engine.models.settings import settings_of
from engine.sampling.constraint import WORD, Constraint, mask_words
from engine.sampling.grammar import Grammars

ROWS = 32
WALKS, LONGEST = 6, 400  # random answers to a schema, and tokens of one
FIELDS = ("name", "street", "city", "comment", "title", "unit", "kind", "state")


def schema_number(number: int) -> dict[str, Any]:
    """One of many that are alike and different."""
    strings = {f"{field}_{number}": {"type": "string", "maxLength": 40} for field in FIELDS}
    others = {
        "count": {"type": "integer", "minimum": 0, "maximum": 100 + number},
        "tags": {"type": "array", "items": {"enum": ["red", "green", f"blue {number}"]}},
    }
    properties = strings | others
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


class Walker:
    """Draws tokens that may come, each as likely as any other."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = settings_of(folder / "config.json")
        config = config.get("text_config") or config
        self.vocabulary = int(config["vocab_size"])
        self.eos_ids = end_tokens(folder)
        self.grammars = Grammars(str(folder), self.vocabulary, self.eos_ids)
        self._random = random.Random(seed)
        self.masks: list[float] = []  # seconds of each

    def start(self, structure: Structure) -> Constraint:
        return grammar_of(structure).start(self.grammars)

    def allowed(self, constraint: Constraint) -> list[int]:
        row = torch.zeros(mask_words(self.vocabulary), dtype=torch.int32)
        begun = time.perf_counter()
        constraint.mask(row)
        self.masks.append(time.perf_counter() - begun)
        bits = row[:, None] >> torch.arange(WORD, dtype=torch.int32) & 1
        found: list[int] = bits.flatten()[: self.vocabulary].nonzero().flatten().tolist()
        return found

    def walk(self, constraint: Constraint) -> str | None:
        """A text that has come to its end, which is taken wherever it may come; None without."""
        tokens: list[int] = []
        while len(tokens) < LONGEST:
            allowed = self.allowed(constraint)
            ends = [token for token in allowed if token in self.eos_ids]
            if ends and (len(ends) == len(allowed) or self._random.random() < 0.3):
                return str(self.tokenizer.decode(tokens))
            tokens.append(self._random.choice([t for t in allowed if t not in self.eos_ids]))
            constraint.advance(tokens[-1])
        return None

    def takes(self, constraint: Constraint, text: str) -> bool:
        """Whether exactly this text may come."""
        for token in self.tokenizer.encode(text, add_special_tokens=False).ids:
            if token not in self.allowed(constraint):
                return False
            constraint.advance(token)
        return bool(self.eos_ids & set(self.allowed(constraint)))


def cost(walker: Walker) -> Iterator[str]:
    """Lines about compiling and masks."""
    compiling, constraints = [], []
    grammar_of(Structure("regex", "a", ""))
    walker.start(Structure("regex", "a", "")).complete  # noqa: B018 - brings the tokens in order
    for number in range(ROWS):
        structure = Structure("json", json.dumps(schema_number(number)), "")
        begun = time.perf_counter()
        constraints.append(walker.start(structure))
        _ = constraints[-1].complete
        compiling.append(time.perf_counter() - begun)
    walker.masks.clear()
    for constraint in constraints:
        walker.walk(constraint)
    masks = [1e3 * seconds for seconds in walker.masks]
    median = 1e3 * statistics.median(compiling)
    yield f"check and compile a schema of {len(FIELDS) + 2} fields, ms: {median:.2f}"
    yield (
        f"a mask over {walker.vocabulary} tokens, ms: median {statistics.median(masks):.3f}, "
        f"mean {statistics.mean(masks):.3f}, p99 {sorted(masks)[len(masks) * 99 // 100]:.3f}; "
        f"of {ROWS} answers, mean {ROWS * statistics.mean(masks):.2f}"
    )


def suite(walker: Walker, folder: Path) -> Iterator[str]:
    """Lines about the suite's schemas."""
    counts: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for file in sorted(folder.glob("*.json")):
        for case in json.loads(file.read_text(encoding="utf-8")):
            counts["schemas"] += 1
            structure = Structure("json", json.dumps(case["schema"]), "schema")
            try:
                grammar_of(structure)
            except ApplianceError as error:
                refused[error.message.partition(": ")[2][:60]] += 1
                continue
            counts["taken"] += 1
            yield from of_case(walker, structure, file.stem, case, counts)
    yield ", ".join(f"{count} {what}" for what, count in counts.items())
    for reason, count in refused.most_common(25):
        yield f"{count} refused: {reason}"


def of_case(
    walker: Walker, structure: Structure, name: str, case: dict[str, Any], counts: Counter[str]
) -> Iterator[str]:
    validator = jsonschema.Draft202012Validator(case["schema"])
    where = f"{name}: {case['description']}"
    for _ in range(WALKS):
        text = walker.walk(walker.start(structure))
        if text is None:
            counts["walks without an end"] += 1
            continue
        counts["walks"] += 1
        try:
            validator.validate(json.loads(text))
        except re.error:  # of a pattern that Python's own regular expressions do not have
            counts["walks that nobody judges"] += 1
        except (ValueError, jsonschema.ValidationError) as fault:
            counts["walks that are invalid"] += 1
            yield f"INVALID {where}: {text[:80]!r} {str(fault).splitlines()[0][:80]}"
    for test in case["tests"]:
        text = json.dumps(test["data"], ensure_ascii=False)
        taken = walker.takes(walker.start(structure), text)
        kind = "valid" if test["valid"] else "invalid"
        counts[f"{kind} values {'taken' if taken else 'not taken'}"] += 1
        if taken and not test["valid"]:
            yield f"TAKEN {where}: {text[:80]}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.grammars", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--suite", type=Path)
    options = parser.parse_args()
    walker = Walker(options.checkpoint)
    for line in cost(walker):
        print(line)
    if options.suite is not None:
        for line in suite(walker, options.suite):
            print(line, flush=True)


if __name__ == "__main__":
    main()
