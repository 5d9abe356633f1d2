"""Answers held to a grammar: JSON by a schema, a regular expression, choices, rules.

The grammars are those of llguidance. Whoever sends a request writes one, and `fault` says what is
wrong with it, without a model. The engine brings tokens and grammar together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ConstraintFailed, RequestRefused

if TYPE_CHECKING:
    import torch

MOST_KEPT, MOST_KEPT_BYTES = 256, 16 << 20  # compiled grammars, by the length of their text


@dataclass(slots=True, frozen=True)
class Grammar:
    """`ConstraintSource`: a grammar as llguidance writes it."""

    text: str

    def start(self, grammars: Grammars) -> GrammarConstraint:
        return grammars.start(self.text)


@cache
def limits() -> Any:
    """What compiling a grammar and following it may take; milliseconds, as llguidance tells."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_grammar_size=200_000,  # symbols
        initial_lexer_fuel=1_000_000,  # 20 ms
        step_lexer_fuel=200_000,  # 15 ms
        step_max_items=50_000,  # 3 ms
        max_lexer_states=50_000,  # 100 MB
        verbose_errors=False,
    )


def fault(text: str) -> str | None:
    """Why a grammar cannot be followed, in llguidance's words; None if it can."""
    from llguidance import LLMatcher

    return LLMatcher.validate_grammar(text, limits=limits()) or None


class Grammars:
    """Grammars over a model's tokens, compiled aside: a sequence waits for its own, no other does.

    The tokens are brought into order when the first one is asked for.
    """

    def __init__(self, folder: str, vocabulary: int, eos_ids: Iterable[int]) -> None:
        self._folder, self._vocabulary = Path(folder), vocabulary
        self._eos_ids = sorted(eos_ids)
        self._compiling: ThreadPoolExecutor | None = None
        self._tokens: Any = None
        self._kept: OrderedDict[str, Future[Any]] = OrderedDict()
        self._bytes = 0

    def start(self, text: str) -> GrammarConstraint:
        """The constraint of an answer without a token. Its grammar may still be compiled.

        Raises RequestRefused for a model that no answer of could end.
        """
        if not self._eos_ids:
            raise RequestRefused("a model without an end token cannot be held to a grammar")
        if self._compiling is None:
            self._compiling = ThreadPoolExecutor(1, "grammars")
        compiled = self._kept.get(text)
        if compiled is None:
            compiled = self._kept[text] = self._compiling.submit(self._compile, text)
            self._bytes += len(text)
        self._kept.move_to_end(text)
        while len(self._kept) > MOST_KEPT or self._bytes > MOST_KEPT_BYTES:
            oldest, _ = self._kept.popitem(last=False)
            self._bytes -= len(oldest)
        return GrammarConstraint(compiled)

    def await_one(self, seconds: float) -> None:
        """Wait for one that is being compiled, if there is any."""
        pending = [one for one in self._kept.values() if not one.done()]
        wait(pending, seconds, "FIRST_COMPLETED")

    def _compile(self, text: str) -> Any:
        from llguidance import LLMatcher, LLTokenizer

        if self._tokens is None:
            self._tokens = LLTokenizer(
                self._tokenizer(), n_vocab=self._vocabulary, eos_token=self._eos_ids
            )
        return LLMatcher(self._tokens, text, log_level=0, limits=limits())

    def _tokenizer(self) -> str:
        file = self._folder / "tokenizer.json"
        if file.exists():
            return file.read_text(encoding="utf-8")
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(
            self._folder, trust_remote_code=False, local_files_only=True
        )
        text: str = loaded.backend_tokenizer.to_str()
        return text


class GrammarConstraint:
    """`Constraint` of one answer."""

    group = None

    def __init__(self, compiled: Future[Any]) -> None:
        self._compiled = compiled
        self._own: Any = None

    @property
    def ready(self) -> bool:
        return self._compiled.done()

    @property
    def complete(self) -> bool:
        matcher = self._matcher()
        return bool(matcher.is_stopped() and matcher.is_accepting())

    def mask(self, row: torch.Tensor) -> None:
        matcher = self._matcher()
        matcher.unsafe_compute_mask_ptr(row.data_ptr(), row.numel() * row.itemsize)
        self._check(matcher)

    def advance(self, token: int) -> None:
        matcher = self._matcher()
        matcher.consume_token(token)
        self._check(matcher)

    def _matcher(self) -> Any:
        if self._own is None:
            self._own = self._compiled.result().deep_copy()
            self._check(self._own)
        return self._own

    @staticmethod
    def _check(matcher: Any) -> None:
        if matcher.is_error():
            raise ConstraintFailed(f"the grammar cannot be followed: {matcher.get_error()[:200]}")
