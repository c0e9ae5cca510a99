"""Comparisons of evaluations whose numbers are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning_ft_compare import compare
from lightning_ft_compare.breakdown import OTHER, by_length, confusion
from lightning_ft_compare.command import main
from lightning_ft_compare.evaluations import Side
from lightning_ft_compare.markdown import block, escaped

from lightning_ft.bootstrap import paired_bootstrap
from lightning_ft.errors import CheckFailedError, DataError, UsageError
from lightning_ft.evaluation import Evaluation
from lightning_ft.likelihood import Loss
from lightning_ft.types import Classified, Conversation, Example, Message, ScoredRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.testing.fixtures import Scratch

METRICS = ("loss", "token_accuracy", "exact_match")
COST = {
    "likelihood_seconds": 2.0, "generation_seconds": 4.0, "likelihood_tokens": 400, "generated_tokens": 100,
    "peak_memory": 3_000_000_000, "parameters": 5_000_000, "bytes": 20_000_000,
}  # fmt: skip


def chat(prompt: str, answer: str, **meta: Any) -> Conversation:
    return Conversation((Message("user", prompt), Message("assistant", answer)), meta=meta)


def made(
    name: str, nll: Sequence[float], answers: Sequence[str], *, examples: Sequence[Example] | None = None, file: str = "f",
    metrics: Sequence[str] = METRICS, details: dict[str, Any] | None = None, tokens: int = 10,
) -> str:  # fmt: skip
    """The folder of an evaluation of rows whose right answer is `yes`."""
    given = examples or [chat("q" * (i + 1), "yes", task="even" if i % 2 == 0 else "odd") for i in range(len(nll))]
    rows = [
        ScoredRow(f"{file}:{i + 1}", example, nll=x, tokens=tokens, correct=i % 10, prompt="<user>q", prediction=answer,
                  references=("yes",), utf8_bytes=3)
        for i, (x, answer, example) in enumerate(zip(nll, answers, given, strict=True))
    ]  # fmt: skip
    Evaluation.of(metrics, rows, details).write(Path(name))
    return name


def pair_of_models(count: int = 40) -> list[str]:
    """B is better by 1 nat per token in all rows, right in the even ones, where A is right in the first four."""
    base = [20.0 + i % 2 for i in range(count)]
    return [
        made("a", base, ["yes" if i < 4 else "no" for i in range(count)], details={"cost": COST}),
        made("b", [x - 10 for x in base], ["yes" if i % 2 == 0 else "no" for i in range(count)], file="elsewhere/f"),
    ]


def test_numbers_are_those_of_the_evaluations(scratch: Scratch) -> None:
    report = compare(pair_of_models(), output="out", samples=500, seed=3)
    pair = report.pairs[0]
    assert [d.comparison.metric for d in pair.differences] == list(METRICS)
    assert [d.comparison.word for d in pair.differences] == ["better", "no difference shown", "better"]
    loss, _, exact = pair.differences
    tables = [Evaluation.read(Path(name)).tables["loss"] for name in ("a", "b")]
    assert loss.comparison == paired_bootstrap(Loss, *tables, samples=500, seed=3)
    assert (loss.comparison.difference, loss.improvement) == pytest.approx((-1.0, 1.0 / (loss.comparison.base)))
    assert (exact.comparison.base, exact.comparison.tuned, exact.improvement) == pytest.approx((0.1, 0.5, 4.0))
    assert report.sentence == (
        "On 40 rows B against A: better in loss, exact_match; no difference shown in token_accuracy (95% paired bootstrap "
        "intervals)."
    )


def test_wins_ties_and_losses_by_hand(scratch: Scratch) -> None:
    """A is right in rows 0 to 3, B in the even ones of 40: B wins 4, 6 ... 38, loses 1 and 3, and the rest is the same."""
    pair = compare(pair_of_models(), output="out", samples=200).pairs[0]
    assert [(w.of, w.win, w.tie, w.loss) for w in pair.wins] == [("exact_match", 18, 20, 2), ("likelihood", 40, 0, 0)]
    assert pair.ranked_by == "exact_match"
    assert [change.row for change in pair.worse] == ["f:2", "f:4"]
    assert len(pair.better) == 5
    first = pair.better[0]
    assert (first.prompt, first.reference, first.answers, first.scores) == ("qqqqq", "yes", ("no", "yes"), (0.0, 1.0))


def test_the_largest_changes_come_first_and_likelihoods_decide_between_equal_ones(scratch: Scratch) -> None:
    """B is right in rows 1 to 8 and A in 9 to 12; likelihoods change by 0, 1, 2 ... nats towards the better."""
    names = [
        made("a", [20.0] * 12, ["no"] * 8 + ["yes"] * 4),
        made("b", [20.0 - i for i in range(12)], ["yes"] * 8 + ["no"] * 4),
    ]
    pair = compare(names, output="out", samples=200).pairs[0]
    assert [change.row for change in pair.better] == ["f:8", "f:7", "f:6", "f:5", "f:4"]
    assert [change.row for change in pair.worse] == ["f:9", "f:10", "f:11", "f:12"]
    by_likelihood = compare(names, output="out2", metrics=["loss"], samples=200).pairs[0]
    assert [change.row for change in by_likelihood.better] == ["f:12", "f:11", "f:10", "f:9", "f:8"]
    assert by_likelihood.better[0].scores == (-20.0, -9.0)


def test_breakdowns_are_the_same_numbers_on_fewer_rows(scratch: Scratch) -> None:
    names = pair_of_models()
    pair = compare(names, output="out", samples=300).pairs[0]
    assert [(group.name, group.rows) for group in pair.by_group] == [("even", 20), ("odd", 20)]
    even, odd = (group.differences[2].comparison for group in pair.by_group)
    assert (even.base, even.tuned, odd.base, odd.tuned) == (0.1, 1.0, 0.1, 0.0)
    tables = [Evaluation.read(Path(name)).tables["loss"][::2] for name in names]
    assert pair.by_group[0].differences[0].comparison == paired_bootstrap(Loss, *tables, samples=300)
    assert [(group.name, group.rows) for group in pair.by_length] == [
        ("1 to 10 characters", 10), ("11 to 20 characters", 10), ("21 to 30 characters", 10), ("31 to 40 characters", 10),
    ]  # fmt: skip
    assert sum(group.rows for group in pair.by_length) == 40


def test_lengths_that_are_all_the_same_are_one_part() -> None:
    rows = [ScoredRow(str(i), chat("same", "x")) for i in range(9)]
    assert by_length(rows) == {"4 characters": list(range(9))}


def test_another_column_breaks_it_down(scratch: Scratch) -> None:
    examples = [chat(f"q{i}", "yes", city=["Rome", "Oslo", None][i % 3]) for i in range(30)]
    names = [made(name, [20.0 - k] * 30, ["no"] * 30, examples=examples) for k, name in enumerate("ab")]
    report = compare(names, output="out", by="city", samples=200)
    assert [(group.name, group.rows) for group in report.pairs[0].by_group] == [("Oslo", 10), ("Rome", 10), ("(none)", 10)]
    with pytest.raises(UsageError, match="Expected --by to be a column that rows of 'a' have; got 'town'"):
        compare(names, output="out2", by="town")


def test_three_models_each_against_the_first(scratch: Scratch) -> None:
    names = [made(name, [20.0 + k + i % 2 for i in range(12)], ["no"] * 12) for k, name in enumerate("abc")]
    report = compare(names, output="out", samples=200)
    assert [(pair.letter, round(pair.differences[0].comparison.difference, 6)) for pair in report.pairs] == [
        ("B", 0.1),
        ("C", 0.2),
    ]
    assert "B against A: worse in loss" in report.sentence
    assert "C against A: worse in loss" in report.sentence


def test_files_hold_what_was_found(scratch: Scratch) -> None:
    report = compare(pair_of_models(), output="out", samples=200)
    found = json.loads(Path("out/comparison.json").read_text())
    assert found == json.loads(json.dumps(report.as_dict()))
    assert found["sentence"] == report.sentence
    assert found["models"][0]["cost"] == COST
    assert found["models"][0]["tokens_per_second"] == {"likelihood": 200.0, "generation": 25.0}
    assert found["models"][1]["cost"] == {}
    difference = found["pairs"][0]["differences"][0]
    assert (difference["word"], difference["comparison"]["metric"]) == ("better", "loss")
    text = Path("out/report.md").read_text()
    assert "| loss (lower is better) | 2.050 | 1.050 | -1.000 | +48.8 % |" in text
    assert "| A | 5,000,000 | 20 MB | 3 GB | 2 s | 200 | 4 s | 25.0 |" in text
    assert "| B | - | - | - | - | - | - | - |" in text
    page = Path("out/report.html").read_text()
    assert "5,000,000" in page
    assert "even" in page
    assert "<script" not in page


def test_gate_by_hand(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    """B is worse by exactly 0.1 nats in every row, so the interval has no width: beyond 0 and 0.05, not beyond 0.1 and 0.2."""
    names = [made(name, [20.0 + k] * 12, ["no"] * 12) for k, name in enumerate("ab")]
    for n, (limit, refused) in enumerate((("loss", True), ("loss:0.05", True), ("loss:0.2", False), ("exact_match", False))):
        words = ["--models", *names, "--output", f"out{n}", "--samples", "200", "--fail_if_worse", limit]
        if not refused:
            assert main(words) == 0
            continue
        with pytest.raises(CheckFailedError, match=f"--fail_if_worse {limit}: B is worse than A in loss") as caught:
            main(words)
        assert caught.value.exit_code == 3
        assert "2.000 -> 2.100, difference +0.1000" in str(caught.value)
        assert "Refused by the gate" in Path(f"out{n}/report.html").read_text()
        assert "Refused by the gate" in Path(f"out{n}/report.md").read_text()
    assert "Report: out0/report.html" in capsys.readouterr().out


def test_gate_wants_the_whole_interval_beyond_the_margin_and_counts_per_cent(scratch: Scratch) -> None:
    """exact_match falls from 1 to 3/4 of 200 rows; the 95 % interval is about [-31, -19] pp."""
    right = ["yes"] * 200
    names = [made("a", [20.0] * 200, right), made("b", [20.0] * 200, ["no" if i % 4 == 0 else "yes" for i in range(200)])]
    for margin, refused in ((0, True), (15, True), (25, False), (40, False)):
        report = compare(names, output=f"out{margin}", fail_if_worse=[f"exact_match:{margin}"])
        assert bool(report.refusals) is refused, (margin, report.pairs[0].differences[2].comparison)
    assert "by more than 15.0 pp: 100.0 % -> 75.0 %" in compare(names, output="o", fail_if_worse=["exact_match:15"]).refusals[0]
    assert compare(names[::-1], output="turned", fail_if_worse=["exact_match"]).refusals == ()


def test_a_gate_that_cannot_decide_lets_nothing_pass(scratch: Scratch) -> None:
    few = [made(name, [20.0] * 5, ["no"] * 5) for name in "ab"]
    assert "5 rows decide nothing; compare on at least 10" in compare(few, output="o1", fail_if_worse=["loss"]).refusals[0]
    some = [chat(f"q{i}", "yes", harmful=i < 9) for i in range(40)]
    rare = [made(name, [20.0] * 40, ["I cannot."] * 40, examples=some, metrics=["refusal_rate"]) for name in "ef"]
    report = compare(rare, output="o3", fail_if_worse=["refusal_rate"])
    assert "9 rows decide nothing" in report.refusals[0]
    assert "Fewer than 10 rows never decide, and no more count for refusal_rate." in report.notes
    broken = [made("c", [20.0] * 12, ["no"] * 12), made("d", [math.nan] * 12, ["no"] * 12)]
    report = compare(broken, output="o2", fail_if_worse=["loss"])
    assert "B cannot be compared in loss" in report.refusals[0]
    assert json.loads(Path("o2/comparison.json").read_text())["pairs"][0]["differences"][0]["comparison"]["tuned"] is None


def test_metrics_that_an_evaluation_lacks_come_from_its_rows(scratch: Scratch) -> None:
    names = [made(name, [20.0 + k] * 12, ["yes"] * 12, metrics=["loss"]) for k, name in enumerate("ab")]
    report = compare(names, output="out", metrics=["EXACT_MATCH"], fail_if_worse=["bits_per_byte:9"])
    assert [d.comparison.metric for d in report.pairs[0].differences] == ["exact_match", "bits_per_byte"]
    assert report.models[0].metrics["exact_match"] == 1.0


def test_a_metric_without_a_better_side_is_told_and_not_judged(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_ft.registry import registry

    monkeypatch.setattr(registry().metrics["exact_match"].cls, "higher_is_better", None)
    names = pair_of_models()
    report = compare(names, output="out", samples=200)
    pair = report.pairs[0]
    assert (pair.differences[2].comparison.word, pair.differences[2].improvement) == ("changed", None)
    assert "changed in exact_match" in report.sentence
    assert [w.of for w in pair.wins] == [pair.ranked_by] == ["likelihood"]
    assert "neither is better" in Path("out/report.html").read_text()
    with pytest.raises(UsageError, match="to name a metric with a better side; got 'exact_match', which has none"):
        compare(names, output="out2", fail_if_worse=["exact_match"])


def test_values_that_were_computed_differently_are_noted(scratch: Scratch) -> None:
    names = pair_of_models()
    path = Path(names[1], "results.json")
    results = json.loads(path.read_text())
    path.write_text(json.dumps(results | {"signatures": results["signatures"] | {"loss": "loss 2"}}))
    assert compare(names, output="out", samples=200).notes == ("loss was not computed in one way: (no signature) and loss 2.",)


def test_tables_of_different_tokens_are_noted(scratch: Scratch) -> None:
    names = [made(name, [20.0] * 12, ["no"] * 12, tokens=10 + k) for k, name in enumerate("ab")]
    assert "not comparable; compare bits_per_byte" in compare(names, output="out").notes[0]


def test_other_rows_are_refused(scratch: Scratch) -> None:
    a, b = (made(name, [20.0] * n, ["no"] * n) for name, n in (("a", 12), ("b", 13)))
    with pytest.raises(UsageError, match=r"A \('a'\) and B \('b'\) to be evaluated on the same rows, got 12 and 13 rows"):
        compare([a, b], output="out")
    made("c", [20.0] * 12, ["no"] * 12, examples=[chat(f"other {i}", "yes") for i in range(12)])
    with pytest.raises(UsageError, match="got two versions of 'f:1'; evaluate all models on one file"):
        compare([a, "c"], output="out2")


def test_classes_and_what_they_were_taken_for() -> None:
    """An answer may differ in case; what is no class is `(another)`; likelihoods of all classes go before text."""
    said = [("a", "A "), ("a", "b"), ("b", "b"), ("b", "neither"), ("c", "c")]
    rows = [ScoredRow(str(i), Classified("text", label), prediction=answer) for i, (label, answer) in enumerate(said)]
    rows.append(ScoredRow("5", Classified("text", "c"), prediction="c", candidates={"a": -1.0, "b": -2.0, "c": -3.0}))
    found = confusion(Side("A", "m", Evaluation.of([], rows), Path("m"), None))
    assert found is not None
    assert found.classes == ("a", "b", "c", OTHER)
    assert found.counts == ((1, 1, 0, 0), (0, 1, 0, 1), (1, 0, 1, 0), (0, 0, 0, 0))
    assert confusion(Side("A", "m", Evaluation.of([], rows[:3]), Path("m"), None)).classes == ("a", "b")  # type: ignore[union-attr]  # there are rows
    assert (
        confusion(Side("A", "m", Evaluation.of([], [ScoredRow("1", chat("q", "a"), prediction="a")]), Path("m"), None)) is None
    )


def test_classes_that_differ_in_case_alone_are_two() -> None:
    rows = [ScoredRow(label, Classified("text", label), prediction=label) for label in ("Yes", "yes", "no")]
    rows.append(ScoredRow("tie", Classified("text", "no"), candidates={"yes": -1.0, "no": -1.0, "Yes": -2.0}))
    found = confusion(Side("A", "m", Evaluation.of([], rows), Path("m"), None))
    assert found is not None
    assert found.counts == ((1, 0, 0), (0, 2, 0), (0, 0, 1)), "Yes, no, yes: each for itself, and the first of two equal ones"


def test_classes_are_in_the_reports(scratch: Scratch) -> None:
    examples = [Classified(f"text {i}", ["refund", "order <b>"][i % 2]) for i in range(12)]
    names = [made(name, [20.0] * 12, ["refund"] * 12, examples=examples) for name in "ab"]
    compare(names, output="out", samples=200)
    assert "| 2 refund | 0 | 6 |" in Path("out/report.md").read_text()
    page = Path("out/report.html").read_text()
    assert '<td class="number heat5">6</td>' in page
    assert "order &lt;b&gt;" in page


def test_foreign_text_stays_text_in_markdown() -> None:
    assert escaped("a|b *c*\n<d>") == r"a\|b \*c\* \<d\>"
    assert block("```js\n1\n```").startswith("````text\n```js")


def test_an_evaluation_of_no_rows(scratch: Scratch) -> None:
    names = [made(name, [], []) for name in "ab"]
    with pytest.raises(DataError, match="a: expected at least one row in the evaluation, got none"):
        compare(names, output="out")


def test_tables_of_different_width_are_made_again_together(scratch: Scratch) -> None:
    """A metric whose statistics depend on the answers that it finds in `prepare`, as one over classes does."""
    from lightning_ft_compare.comparing import tables_of

    from lightning_ft.metric import Metric

    class Variety(Metric):
        """Number of different answers: a column each."""

        name = "variety"

        def prepare(self, rows: Sequence[ScoredRow]) -> None:
            self.known = sorted({row.prediction or "" for row in rows})

        def statistics(self, row: ScoredRow) -> Sequence[float]:
            return [float(row.prediction == one) for one in self.known]

        def finish(self, totals: torch.Tensor) -> torch.Tensor:
            return (totals > 0).sum(-1).double()

    sides: list[Evaluation] = []
    for answers in (["x", "y"], ["z", "w"]):
        rows = [ScoredRow(str(i), chat("q", "x"), prediction=answer) for i, answer in enumerate(answers)]
        metric = Variety()
        metric.prepare(rows[: len(sides) + 1])
        table = torch.tensor([list(metric.statistics(row)) for row in rows], dtype=torch.float64)
        sides.append(Evaluation({}, rows, {"variety": table}))
    assert sides[0].tables["variety"].shape != sides[1].tables["variety"].shape
    metric = Variety()
    a, b = tables_of(metric, *sides)
    assert a.shape == b.shape
    assert [float(metric.finish(table.sum(0))) for table in (a, b)] == [2.0, 2.0]


def test_answers_that_were_sampled_differently_are_noted(scratch: Scratch) -> None:
    sampled = [{"max_new_tokens": 8, "seed": 0}, {"max_new_tokens": 16, "seed": 0}]
    names = [made(name, [20.0] * 12, ["no"] * 12, details={"sampling": own}) for name, own in zip("ab", sampled, strict=True)]
    assert compare(names, output="out").notes == ("The answers were not sampled alike: max_new_tokens is 8 and 16.",)


def test_values_that_are_not_shown_are_counted(scratch: Scratch) -> None:
    examples = [chat("q", "yes", key=f"k{i}") for i in range(25)]
    names = [made(name, [20.0] * 25, ["no"] * 25, examples=examples) for name in "ab"]
    assert compare(names, output="out", by="key").notes == ("Of 25 values of 'key' the 20 most frequent are shown.",)


def test_what_is_refused_leaves_no_folder(scratch: Scratch) -> None:
    with pytest.raises(UsageError, match="12 and 5 rows"):
        compare([made("a", [20.0] * 12, ["no"] * 12), made("b", [20.0] * 5, ["no"] * 5)], output="out")
    assert not Path("out").exists()
