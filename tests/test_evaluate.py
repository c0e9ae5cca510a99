from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_ft.data.encode import Encoder
from lightning_ft.data.render import Template
from lightning_ft.errors import DataError, UsageError
from lightning_ft.evaluation import Evaluation, as_metrics, check_group, compute, prefix_of
from lightning_ft.generation import Sampling, generate_texts
from lightning_ft.likelihood import BitsPerByte, Loss, Perplexity, TokenAccuracy
from lightning_ft.metric import RowMetric
from lightning_ft.scoring import as_given, check_rows, references_of, score_examples
from lightning_ft.testing.models import tiny_llama, tiny_tokenizer
from lightning_ft.types import Classified, Conversation, Example, Message, Preference, ScoredRow, Text, Unpaired

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Exact(RowMetric):
    """Whether the answer is one of the references."""

    name: ClassVar[str] = "exact"

    def score(self, row: ScoredRow) -> float:
        assert row.prediction is not None
        return float(row.prediction in row.references)


def chat(*contents: str, **meta: Any) -> Conversation:
    roles = ("user", "assistant") * len(contents)
    return Conversation(tuple(Message(role, text) for role, text in zip(roles, contents, strict=False)), meta=meta)


EXAMPLES: list[Example] = [
    chat("Say hi", "hi \u00e9\u6771", "Again", "hi"),
    Text("Raw text, all of it."),
    chat("Where is my parcel, which I ordered three weeks ago and which never came?", "On its way."),
    chat("Only a question"),
    chat("2+2", "4", references=["four", "4"]),
]
ROWS = [f"f:{i}" for i in range(len(EXAMPLES))]


class Setup:
    def __init__(self) -> None:
        self.model = tiny_llama()
        self.tokenizer = tiny_tokenizer()
        self.template = Template.resolve("chat", self.tokenizer)
        self.encoder = Encoder(self.tokenizer, self.template, 200)

    def score(self, examples: list[Example], rows: list[str], **options: Any) -> list[ScoredRow]:
        defaults: dict[str, Any] = {"metrics": [Loss, Exact], "sampling": Sampling(max_new_tokens=6), "batch_tokens": 300}
        return score_examples(self.model, self.encoder, self.template, self.tokenizer, examples, rows, **(defaults | options))


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup()


@pytest.fixture(scope="module")
def scored(setup: Setup) -> list[ScoredRow]:
    return setup.score(EXAMPLES, ROWS)


def test_likelihoods_are_those_of_the_plain_model(setup: Setup, scored: list[ScoredRow]) -> None:
    assert [row.row for row in scored] == ROWS
    for row, item in zip(scored, setup.encoder.encode(EXAMPLES, ROWS), strict=True):
        with torch.no_grad():
            logits = setup.model(input_ids=torch.tensor([item.input_ids])).logits[0, :-1]
        labels = torch.tensor(item.labels[1:])
        assert row.nll == pytest.approx(float(F.cross_entropy(logits, labels, reduction="sum")), rel=1e-5)
        assert row.tokens == int((labels != -100).sum())
        assert row.correct == int((logits.argmax(-1) == labels)[labels != -100].sum())
    assert scored[3].tokens == 0


def test_perplexity_is_exp_of_the_mean_over_all_tokens(scored: list[ScoredRow]) -> None:
    values = compute([Loss, Perplexity, TokenAccuracy, BitsPerByte], scored)
    nll, tokens = sum(row.nll for row in scored), sum(row.tokens for row in scored)
    assert values["loss"] == pytest.approx(nll / tokens)
    assert values["perplexity"] == pytest.approx(math.exp(nll / tokens))
    mean_of_rows = sum(math.exp(row.nll / row.tokens) for row in scored if row.tokens) / 4
    assert values["perplexity"] != pytest.approx(mean_of_rows, rel=1e-3)
    assert values["token_accuracy"] == pytest.approx(sum(row.correct for row in scored) / tokens)


def test_bytes_are_those_of_the_supervised_text(scored: list[ScoredRow]) -> None:
    """'hi ' + 2 + 3 bytes, and 'hi'; the stop token is no text. A raw text has no predicted first byte."""
    expected = [len("hi \u00e9\u6771".encode()) + 2, len("Raw text, all of it."), len("On its way."), 0, 1]
    assert abs(scored[1].utf8_bytes - expected[1]) <= 1
    expected[1] = scored[1].utf8_bytes
    assert [row.utf8_bytes for row in scored] == expected
    assert compute(["bits_per_byte"], scored)["bits_per_byte"] == pytest.approx(
        sum(row.nll for row in scored) / math.log(2) / sum(expected)
    )


def test_the_last_assistant_turn_is_answered(setup: Setup, scored: list[ScoredRow]) -> None:
    turns = ["user\nSay hi", "assistant\nhi \u00e9\u6771", "user\nAgain"]
    assert scored[0].prompt == "<|bos|>" + "".join(f"<|start|>{turn}<|stop|>\n" for turn in turns) + "<|start|>assistant\n"
    prompts = [row.prompt for row in scored if row.prompt is not None]
    assert [row.prompt is None for row in scored] == [False, True, False, True, False]
    stops = setup.template.stop_tokens(setup.tokenizer)
    assert [row.prediction for row in scored if row.prompt is not None] == generate_texts(
        setup.model, setup.tokenizer, prompts, Sampling(max_new_tokens=6), stop_tokens=stops
    )
    assert [row.references for row in scored] == [("hi",), (), ("On its way.",), (), ("4", "four")]


def test_text_is_generated_only_where_a_metric_reads_it(setup: Setup) -> None:
    for options in ({"metrics": [Loss]}, {"metrics": [Loss, Exact], "generate": False}):
        rows = setup.score(EXAMPLES, ROWS, **options)
        assert all(row.prediction is None for row in rows)
        assert set(compute([Loss, Exact], rows)) == {"loss"}


def test_scores_do_not_depend_on_the_batch(setup: Setup, scored: list[ScoredRow]) -> None:
    single = setup.score(EXAMPLES, ROWS, batch_tokens=1)
    assert [row.nll for row in single] == pytest.approx([row.nll for row in scored], rel=1e-5)
    assert [(r.tokens, r.correct, r.prediction) for r in single] == [(r.tokens, r.correct, r.prediction) for r in scored]


@pytest.mark.parametrize("batch_tokens", [1, 40, 300, 100_000])
def test_perplexity_is_the_same_for_every_size_of_batch(setup: Setup, scored: list[ScoredRow], batch_tokens: int) -> None:
    rows = setup.score(EXAMPLES, ROWS, batch_tokens=batch_tokens)
    found, wanted = (Evaluation.of([Perplexity], some).metrics["perplexity"] for some in (rows, scored))
    assert found == pytest.approx(wanted, rel=1e-6)


class Widest(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch
    """The most positions for which something of the size of the vocabulary was computed at once."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.vocabulary, self.positions = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.ndim > 1 and out.shape[-1] == self.vocabulary:
            self.positions = max(self.positions, out.numel() // self.vocabulary)
        return out


def test_the_logits_of_a_whole_set_are_never_there_at_once(setup: Setup) -> None:
    examples, ids = EXAMPLES * 12, [f"f:{n}" for n in range(12 * len(EXAMPLES))]
    with Widest(setup.model.config.vocab_size) as seen:
        rows = setup.score(examples, ids, metrics=[Loss], batch_tokens=64)
    assert 0 < seen.positions <= 64
    assert sum(row.tokens for row in rows) > 5 * seen.positions


def test_dropout_is_off_and_modes_are_restored(scored: list[ScoredRow]) -> None:
    setup = Setup()
    setup.model.config.attention_dropout = 0.9
    setup.model.train()
    assert [row.nll for row in setup.score(EXAMPLES, ROWS)] == pytest.approx([row.nll for row in scored], rel=1e-5)
    assert all(module.training for module in setup.model.modules())


def test_every_kind_of_example_is_scored_as_its_given_answer() -> None:
    question, good, bad = (Message("user", "q"),), (Message("assistant", "good"),), (Message("assistant", "bad"),)
    pair = Preference(question, good, bad, meta={"references": "fine"})
    unweighted = (replace(question[0], weight=0.0),)
    assert as_given(pair) == Conversation(unweighted + good, meta={"references": "fine"})
    assert as_given(Unpaired(question, bad, desirable=False)) == Conversation(unweighted + bad)
    assert as_given(Classified("my text", "refund")) == chat("my text", "refund")
    given = as_given(pair)
    assert references_of(given) == ("good", "fine")


def test_rows_without_an_answer_change_no_text_metric() -> None:
    rows = [ScoredRow("a", chat("q", "x"), prediction="x", references=("x",)),
            ScoredRow("b", chat("q", "x"), prediction="", references=("x",)),
            ScoredRow("c", Text("t"), nll=2.0, tokens=4)]  # fmt: skip
    found = Evaluation.of([Exact, Loss], rows)
    assert found.metrics == {"exact": 0.5, "loss": 0.5}
    assert found.tables["exact"].tolist() == [[1, 1], [0, 1], [0, 0]]
    assert found.tables["loss"].shape == (3, 2)


def test_spread_counts_and_groups_by_hand() -> None:
    """Scores 1, 0, 0 of three answered rows: mean 1/3, standard deviation sqrt(2/9); by task 1/2 and 0."""
    rows = [
        ScoredRow("a", chat("q", "x", task="one"), prediction="x", references=("x",)),
        ScoredRow("b", chat("q", "x", task="one"), prediction="", references=("x",)),
        ScoredRow("c", chat("q", "x", task=2), prediction="y", references=("x",), nll=6.0, tokens=3),
        ScoredRow("d", Text("t"), nll=2.0, tokens=1),
    ]
    found = Evaluation.of([Exact, Loss], rows, by="task")
    assert found.metrics == {"exact": pytest.approx(1 / 3), "loss": 2.0}
    spread = found.spreads["exact"]
    assert (spread.low, spread.high, spread.rows) == (0, 1, 3)
    assert spread.std == pytest.approx(math.sqrt(2 / 9))
    assert "loss" not in found.spreads  # a token is its unit, not a row
    assert found.counts == {"exact": 3, "loss": 2}
    assert found.groups == {"2": {"exact": 0.0, "loss": 2.0}, "one": {"exact": 0.5}, "(none)": {"loss": 2.0}}


def test_rows_are_grouped_by_what_their_prompts_begin_with() -> None:
    examples: list[Example] = [
        chat("translate: a cat", "x"), chat(" [sum up] Once", "x"), Text("<task two> text"), Classified("translate: b", "y"),
        chat("No colon here", "x"), chat("at 12:30 sharp", "x"), chat("http://a.b", "x"),
    ]  # fmt: skip
    assert [prefix_of(one) for one in examples] == ["translate", "sum up", "task two", "translate", None, None, None]
    rows = [ScoredRow(str(i), one, prediction="x", references=("x",)) for i, one in enumerate(examples)]
    found = Evaluation.of([Exact], rows, by="prefix").groups
    assert found == {name: {"exact": 1.0} for name in ("sum up", "task two", "translate", "(none)")}


class Seen(Exact):
    """Refuses rows before they are answered, and looks at the whole set first."""

    name: ClassVar[str] = "seen"

    def check(self, row: ScoredRow) -> None:
        if not row.references:
            raise ValueError(f"{row.row}: expected a reference, got none")

    def prepare(self, rows: Sequence[ScoredRow]) -> None:
        self.total = len(rows)

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        return (self.score(row) * self.total, 1.0)


def test_a_metric_sees_the_whole_set_first() -> None:
    rows = [ScoredRow(str(i), chat("q", "x"), prediction="x", references=("x",)) for i in range(3)]
    assert compute([Seen], [*rows, ScoredRow("t", Text("t"))]) == {"seen": 3.0}


def test_rows_that_a_metric_cannot_judge_are_refused_before_anything_is_generated(setup: Setup) -> None:
    setup_rows = [Conversation((Message("user", "q"), Message("assistant", "")))] * 25
    no_answer = [replace(one, messages=one.messages[:1]) for one in setup_rows]
    checked: list[Example] = [chat("q", "fine"), *no_answer]
    rows = [f"f:{i}" for i in range(len(checked))]
    assert len(setup.score(checked, rows, metrics=[Seen])) == 26  # rows that nobody asks are not judged
    with pytest.raises(DataError) as caught:
        check_rows([Seen()], [ScoredRow(row, one) for row, one in zip(rows, checked, strict=True)], {"text"})
    lines = str(caught.value).splitlines()
    assert lines[0] == "f:0: expected a reference, got none (metric seen)."
    assert len(lines) == 21
    assert lines[-1] == "... and 6 more."


def test_metrics_by_name_class_and_instance() -> None:
    assert [type(m) for m in as_metrics(["LOSS", Exact, Perplexity()])] == [Loss, Exact, Perplexity]
    assert compute([Loss, Exact], []) == {}


def test_written_and_read_back(tmp_path: Path, scored: list[ScoredRow]) -> None:
    question = (Message("user", "q", extra={"name": "x"}),)
    more = [ScoredRow("p", Preference(question, (Message("assistant", "a", 0.5),), ()), nll=math.nan, tokens=1)]
    done = Evaluation.of([Loss, Exact, Perplexity], [*scored, *more], {"seed": 3})
    done.write(tmp_path / "eval_1")
    results = json.loads((tmp_path / "eval_1" / "results.json").read_text())
    assert results["metrics"]["loss"] is None
    assert (results["rows"], results["generated"], results["details"]) == (6, 3, {"seed": 3})
    back = Evaluation.read(tmp_path / "eval_1")
    assert back.rows[:-1] == scored
    assert back.rows[-1].example == more[0].example
    assert math.isnan(back.rows[-1].nll)
    assert back.metrics["exact"] == done.metrics["exact"]
    for name, table in done.tables.items():
        torch.testing.assert_close(back.tables[name], table, rtol=0, atol=0, equal_nan=True)
    assert back.folder == done.folder == tmp_path / "eval_1"


def test_broken_folders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected an evaluation \(results.json"):
        Evaluation.read(tmp_path)
    (tmp_path / "results.json").write_text('{"version": 99}')
    (tmp_path / "predictions.jsonl").write_text("")
    with pytest.raises(DataError, match="version 99"):
        Evaluation.read(tmp_path)


def test_groups_that_have_no_row_are_refused() -> None:
    rows = [chat("translate: hi", "x", kind="a", tags=["b"]), chat("q", "x")]
    for by in ("kind", "prefix"):
        check_group(by, rows)
    with pytest.raises(UsageError, match=r"\(kind\), got 'tags'"):
        check_group("tags", rows)
    with pytest.raises(UsageError, match=r"begin with a name, as in `translate: ...`, for --by prefix; got none among 1"):
        check_group("prefix", rows[1:])


@pytest.mark.parametrize(
    "edited", [{"nll": "1.5"}, {"prediction": 5}, {"example": {"type": "Text", "text": "a", "meta": None}}]
)
def test_rows_edited_by_hand_are_refused_by_number(tmp_path: Path, edited: dict[str, Any]) -> None:
    Evaluation.of([Loss], [ScoredRow(f"f:{i}", Text("a"), nll=1.0, tokens=1) for i in range(3)]).write(tmp_path)
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | edited)
    (tmp_path / "predictions.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match="row 2 with values of other types"):
        Evaluation.read(tmp_path)


def test_answers_that_were_edited_are_refused(tmp_path: Path, scored: list[ScoredRow]) -> None:
    Evaluation.of([Exact], scored).write(tmp_path)
    file = tmp_path / "predictions.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace("f:0", "f:9"), encoding="utf-8")
    with pytest.raises(DataError, match=r"a predictions\.jsonl that was changed after it was written"):
        Evaluation.read(tmp_path)


def test_published_loss_of_a_real_model(shared_data: Path) -> None:
    """Stories of the training distribution have a loss near the published 1.30; other English is far from it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_data / "lm_stories260k"
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf")
    model = AutoModelForCausalLM.from_pretrained(folder / "hf")
    template = Template.resolve("alpaca", tokenizer)
    encoder = Encoder(tokenizer, template, 512)
    story = json.loads((folder / "expected.json").read_text())["expected_text"]
    other = "Notwithstanding the foregoing, the lessee shall indemnify the lessor against all claims."
    rows = score_examples(
        model, encoder, template, tokenizer, [Text(story), Text(other)], ["a", "b"], metrics=[Loss], sampling=Sampling()
    )
    story_loss, other_loss = (row.nll / row.tokens for row in rows)
    assert story_loss < 1.3
    assert other_loss > 3
