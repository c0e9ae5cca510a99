"""Sources of a stream, and the data of a run as a session makes them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft import plugins
from lightning_ft.config import TrainingConfig
from lightning_ft.data.datamodule import FineTuneData
from lightning_ft.data.encode import Encoder
from lightning_ft.data.pipeline import Pipeline, Prepared
from lightning_ft.data.render import Template
from lightning_ft.registry import Registry
from lightning_ft.run.folder import RunFolder
from lightning_ft.run.planning import Planner
from lightning_ft.run.world import World
from lightning_ft.testing.models import tiny_tokenizer
from lightning_ft.types import Conversation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lightning_ft.data.stream import Stream

ROWS = 90


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"question {number}", "response": "answer " * (1 + number % 5), **more}


def write(name: str, rows: Sequence[Any]) -> str:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in rows)
    Path(name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return name


def three_files() -> list[str]:
    return [
        write("a.jsonl", [row(n) for n in range(35)]), write("b.jsonl.gz", [row(n) for n in range(35, 36)]),
        write("c.jsonl", [row(n) for n in range(36, ROWS)]),
    ]  # fmt: skip


class Run:
    """The data of a run as a session makes them."""

    def __init__(self, data: list[str], *, workers: int = 0, **options: Any) -> None:
        tokenizer = tiny_tokenizer()
        given = {"model": "m", "data": data, "stream": 20, "max_steps": 30, "batch_size": 4, "split": [0.8, 0.1, 0.1]}
        self.config = TrainingConfig(**{**given, **options})
        encoder = Encoder(tokenizer, Template.resolve("auto", tokenizer), 256)
        self.said: list[str] = []
        task = options.get("task")
        self.pipeline = Pipeline(self.config, Registry(*plugins.load()), encoder, task, (Conversation,), self.said.append)
        self.prepared: Prepared = self.pipeline.prepare()
        self.planner = Planner(self.config, World(1, 1, 0), packed=True, micro_tokens=512)
        self.schedule = self.planner.whole(self.prepared.tables["train"], self.said.append)
        Path("run").mkdir(exist_ok=True)
        self.stream: Stream = self.planner.stream(
            self.pipeline, self.prepared, self.schedule, RunFolder(Path("run")), self.said.append
        )
        self.data = FineTuneData(self.prepared.tables, self.schedule, 0, stream=self.stream, workers=workers)

    def rows(self, number: int) -> list[str]:
        """The rows of a step, in any order."""
        return sorted(name for micro in self.data.build(number).micro for name in micro.rows)

    def passes(self) -> Iterator[tuple[int, list[str]]]:
        """The rows of each step, and the pass over the source that it belongs to."""
        for number in range(self.stream.total_steps):
            self.stream.ahead(number, number)
            yield int(self.stream.epoch_of(number + 1)), self.rows(number)

    def held_out(self) -> list[str]:
        """Names of the rows in validation and test."""
        tables = [self.prepared.tables["validation"], self.prepared.tables["test"]]
        return sorted(table[i].row for table in tables for i in range(len(table)))

    def close(self) -> None:
        self.stream.close(finished=True)


def names() -> list[str]:
    return [f"a.jsonl:{n}" for n in range(1, 36)] + ["b.jsonl.gz:1"] + [f"c.jsonl:{n}" for n in range(1, ROWS - 35)]
