"""What a run on a card has found so far, in a file that is whole after every row.

`<date>-<card>.jsonl` is written first and read to go on where a run stopped; the table beside it,
`<date>-<card>.md`, is the same for people.
"""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(slots=True, frozen=True)
class Row:
    """One finding. `passed` is None where nothing was aimed at."""

    what: str
    found: str
    aim: str = ""
    passed: bool | None = None

    def __str__(self) -> str:
        return (
            f"{self.what}: {self.found}{f' (aim {self.aim}: {self.verdict})' if self.aim else ''}"
        )

    @property
    def verdict(self) -> str:
        return "" if self.passed is None else "yes" if self.passed else "NO"

    @property
    def cells(self) -> str:
        cells = (self.what, self.found, self.aim, self.verdict)
        return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


@dataclass(slots=True)
class Report:
    """Rows in order, kept in `folder` as soon as the machine has told its name.

    `done` are the parts that need not be run again.
    """

    folder: Path
    title: str = ""
    rows: list[Row] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    _left_out: list[Row] = field(default_factory=list)
    _stem: str = ""

    @property
    def failed(self) -> bool:
        """Whether something that was aimed at was not met."""
        return any(row.passed is False for row in self.rows)

    @property
    def path(self) -> Path:
        """The table."""
        return self.folder / f"{self._stem}.md"

    def begin(self, card: str, title: str, *, resume: bool) -> None:
        """Name the files after the card and today, and with `resume` read what is in them."""
        today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        self._stem = f"{today}-{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}"
        self.title = title
        self.folder.mkdir(parents=True, exist_ok=True)
        record = self._record
        if not resume:
            record.unlink(missing_ok=True)
        elif record.exists():
            self._read(record)
        self._write()

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(row, flush=True)
        self._append(asdict(row))
        self._write()

    def leave_out(self, part: str) -> None:
        """Say that there was no time for a part; it is begun by a run that goes on."""
        self._left_out.append(Row(part, "left out: no time"))
        print(self._left_out[-1], flush=True)
        self._write()

    def end(self, part: str) -> None:
        """Note that a part has told all it had to tell."""
        self.done.add(part)
        self._append({"done": part})

    def markdown(self) -> str:
        lines = ["| what | found | aim | met |", "| --- | ---: | ---: | --- |"]
        return "\n".join([*lines, *(row.cells for row in (*self.rows, *self._left_out))])

    @property
    def _record(self) -> Path:
        return self.folder / f"{self._stem}.jsonl"

    def _read(self, record: Path) -> None:
        """Take over the rows of parts that came to an end; of the others nothing is kept."""
        lines = record.read_text().splitlines()
        record.unlink()
        rows: list[Row] = []
        for line in lines:
            read = json.loads(line)
            if "done" not in read:
                rows.append(Row(**read))
                continue
            for row in rows:
                self.add(row)
            rows = []
            self.end(read["done"])

    def _append(self, line: dict[str, object]) -> None:
        with self._record.open("a") as record:
            record.write(json.dumps(line) + "\n")

    def _write(self) -> None:
        day = self._stem[:10]
        self.path.write_text(f"# bench.gpu, {day}\n\n{self.title}\n\n{self.markdown()}\n")
