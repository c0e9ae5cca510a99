"""Preference pairs: which answer is the likelier one, in metrics, evaluations, comparisons and verdicts."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning_ft_tasks.pair_metrics import PreferenceAccuracy, PreferenceAccuracyAvg, PreferenceMargin
from lightning_ft_tasks.preference import PreferencePairs

from lightning_ft.atomic import sha256
from lightning_ft.data.encode import Encoder
from lightning_ft.data.render import Template
from lightning_ft.decoding import Sampling
from lightning_ft.errors import DataError
from lightning_ft.evaluation import Evaluation
from lightning_ft.scoring import Costs, score_examples
from lightning_ft.testing import check_metric
from lightning_ft.testing.models import tiny_llama, tiny_tokenizer
from lightning_ft.types import Conversation, Example, Message, Preference, ScoredRow, Text

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_ft.metric import Metric

METRICS: tuple[type[Metric], ...] = (PreferenceAccuracy, PreferenceAccuracyAvg, PreferenceMargin)


def turns(*contents: str, first: str = "user") -> tuple[Message, ...]:
    """Turns of user and assistant in turn, beginning with either."""
    names = ("user", "assistant") if first == "user" else ("assistant", "user")
    return tuple(Message(names[i % 2], text) for i, text in enumerate(contents))


def pair(*prompt: str, better: str = "Fine, thanks.", worse: str = "What do you want?", system: str = "") -> Preference:
    before = (Message("system", system),) if system else ()
    return Preference((*before, *turns(*prompt)), turns(better, first="assistant"), turns(worse, first="assistant"))


PAIRS: list[Example] = [
    pair("How are you?"),
    pair("How are you?", system="You are a polite butler."),
    pair("Hello.", "Hello, what can I do for you today?", "Sing.", better="La.", worse="No, I will not, and I have no voice."),
    pair(
        "A", "An earlier answer", "B", "Another, longer than all others are", "C", better="\u00e9\u6771", worse="c", system="S"
    ),
    Preference(turns("Count."), turns("One.", "On.", "Two.", first="assistant"), turns("Two.", first="assistant")),
]


def scored(
    examples: list[Example] = PAIRS, *, metrics: tuple[Any, ...] = METRICS, limit: int = 400, **options: Any
) -> list[ScoredRow]:
    tokenizer = tiny_tokenizer()
    template = Template.resolve("chat", tokenizer)
    return score_examples(
        tiny_llama(), Encoder(tokenizer, template, limit), template, tokenizer, examples,
        [f"pairs.jsonl:{i + 1}" for i in range(len(examples))], metrics=metrics, sampling=Sampling(max_new_tokens=2), **options,
    )  # fmt: skip


def plain(prompt: tuple[Message, ...], answer: tuple[Message, ...]) -> tuple[float, int]:
    """NLL and tokens of the answer's own turns after a prompt, by the template's text and a row of all logits in float64."""
    tokenizer, model = tiny_tokenizer(), tiny_llama().double()
    head = "".join(f"<|start|>{turn.role}\n{turn.content}<|stop|>\n" for turn in prompt)
    ids = [tokenizer.bos_token_id, *tokenizer(head, add_special_tokens=False)["input_ids"]]
    labels = [-100] * len(ids)
    for turn in answer:
        for text, counts in (
            (f"<|start|>{turn.role}\n", False),
            (f"{turn.content}<|stop|>", turn.role == "assistant"),
            ("\n", False),
        ):
            piece = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids, labels = ids + piece, labels + (piece if counts else [-100] * len(piece))
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    places = [i for i, label in enumerate(labels) if label != -100]
    return -sum(float(logps[i - 1, ids[i]]) for i in places), len(places)


@pytest.mark.parametrize("batch_tokens", [1, 150, 10_000])
def test_both_answers_have_the_likelihoods_of_the_plain_model(batch_tokens: int) -> None:
    """Whatever the batch; neither the system's turn nor earlier answers count."""
    for row, example in zip(scored(batch_tokens=batch_tokens), PAIRS, strict=True):
        assert isinstance(example, Preference)
        assert row.worse is not None
        for (nll, tokens), answer in (((row.nll, row.tokens), example.chosen), (row.worse, example.rejected)):
            expected = plain(example.prompt, answer)
            assert tokens == expected[1]
            assert nll == pytest.approx(expected[0], rel=1e-5)


def test_the_worse_answers_are_computed_only_where_a_metric_reads_pairs() -> None:
    costs, both = Costs(), Costs()
    assert all(row.worse is None for row in scored(metrics=("loss",), costs=costs))
    scored(costs=both)
    assert 1.5 * costs.likelihood_tokens < both.likelihood_tokens < 2.5 * costs.likelihood_tokens
    assert both.generated_tokens == 0


def by_hand(*answers: tuple[float, int, float, int]) -> list[ScoredRow]:
    """Rows of log-probability and tokens of the better answer, and of the worse one."""
    return [ScoredRow(f"f:{i}", PAIRS[0], nll=-a, tokens=m, worse=(-b, n)) for i, (a, m, b, n) in enumerate(answers)]


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_keep_the_contract(metric: type[Metric]) -> None:
    check_metric(metric)
    check_metric(metric, by_hand(*[(-1.0, 2, -9.0, 3)] * 6), by_hand(*[(-9.0, 3, -1.0, 2)] * 6))


def test_accuracy_by_hand() -> None:
    """Right, wrong, equal: (1 + 0 + 1/2) / 3 = 1/2; one more that is equal but for what a batch changes: 2 / 4."""
    rows = by_hand((-4, 2, -6, 2), (-5, 2, -3, 2), (-2, 2, -2, 2))
    assert Evaluation.of([PreferenceAccuracy], rows).metrics == {"preference_accuracy": 0.5}
    more = [*rows, *by_hand((-30, 2, -30 * (1 + 1e-7), 2))]
    assert Evaluation.of([PreferenceAccuracy], more).metrics == {"preference_accuracy": 0.5}
    assert Evaluation.of([PreferenceAccuracy], by_hand((-30, 2, -30.001, 2))).metrics == {"preference_accuracy": 1}


def test_mean_log_probabilities_by_hand() -> None:
    """-4 over 4 tokens and -3 over 2: -1 > -1.5, though -4 < -3; -6 over 3 and -1 over 1: -2 < -1. Margins 0.5 and -1."""
    found = Evaluation.of(METRICS, by_hand((-4, 4, -3, 2), (-6, 3, -1, 1)))
    assert found.metrics == {"preference_accuracy": 0.0, "preference_accuracy_avg": 0.5, "preference_margin": -0.25}
    spread = found.spreads["preference_margin"]
    assert (spread.low, spread.high, spread.std, spread.rows) == (-1, 0.5, 0.75, 2)
    assert found.signatures["preference_accuracy_avg"] == "logp:mean|ref:none|ties:half"


def test_a_pair_that_is_cut_is_wrong_not_dropped() -> None:
    """The second has no room for its answers, the third room for a part of the worse one."""
    long = "x" * 300
    rows = scored([pair("q"), pair(long), pair("q", better="y", worse=long)], limit=100)
    assert [row.tokens > 0 for row in rows] == [True, False, True]
    assert [row.worse is not None and row.worse[1] > 0 for row in rows] == [True, False, True]
    assert (rows[1].nll, rows[1].worse) == (0.0, (0.0, 0))
    found = Evaluation.of(METRICS, rows)
    assert found.counts == {metric.name: 3 for metric in METRICS}
    assert [table[1].tolist() for table in found.tables.values()] == [[0, 1]] * 3
    one_cut = [ScoredRow("f:1", PAIRS[0], nll=3.0, tokens=2, worse=(0.0, 0)), ScoredRow("f:2", PAIRS[0], worse=(3.0, 2))]
    assert Evaluation.of(METRICS, one_cut).metrics == dict.fromkeys(PreferencePairs.metrics, 0.0)


@pytest.mark.parametrize("other", [Conversation(turns("q", "a")), Text("raw")])
def test_rows_that_are_no_pairs_are_refused(other: Example) -> None:
    said = rf"pairs.jsonl:2: expected a pair of .* --task preference .* got {type(other).__name__} \(metric preference_margin\)"
    with pytest.raises(DataError, match=said):
        scored([pair("q"), other], metrics=("loss", PreferenceMargin))


def test_written_and_read_back(tmp_path: Path) -> None:
    rows = [*scored(), ScoredRow("f:9", PAIRS[0], nll=1.0, tokens=1, worse=(math.nan, 2)), ScoredRow("f:10", Text("t"))]
    done = Evaluation.of(METRICS, rows)
    done.write(tmp_path)
    back = Evaluation.read(tmp_path)
    assert back.rows[:-2] == rows[:-2]
    assert back.rows[-1].worse is None
    assert back.rows[-2].worse is not None
    assert math.isnan(back.rows[-2].worse[0])
    file = tmp_path / "predictions.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for broken in ([1.0], [1.0, "2"], "12"):
        lines[0]["worse"] = broken
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        with pytest.raises(DataError, match="row 1 with values of other types"):
            Evaluation.read(tmp_path)


def test_folders_of_before_there_were_pairs_are_read(tmp_path: Path) -> None:
    Evaluation.of(["loss"], scored(metrics=("loss",))).write(tmp_path)
    file, results = tmp_path / "predictions.jsonl", tmp_path / "results.json"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert all(line.pop("worse") is None for line in lines)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = json.loads(results.read_text(encoding="utf-8"))
    found["files"]["predictions.jsonl"] = sha256(file)
    results.write_text(json.dumps(found), encoding="utf-8")
    assert all(row.worse is None for row in Evaluation.read(tmp_path).rows)


def test_turns_as_the_prompt_are_read_as_trl_writes_them() -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Greet."}]
    answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    found = PreferencePairs().format({"prompt": turns, **answers, "id": 3})
    assert found.prompt == (Message("system", "Be kind."), Message("user", "Greet."))
    assert (found.chosen, found.rejected) == ((Message("assistant", "chosen"),), (Message("assistant", "rejected"),))
    assert found.meta == {"id": 3}
    with pytest.raises(ValueError, match="expected each turn to be an object"):
        PreferencePairs().format({"prompt": ["q"], **answers})


def test_whole_conversations_are_pairs_whatever_else_repeats_the_prompt() -> None:
    """As the hub's files have them: taken for what comes before the answers, they would give the better one away."""

    def talk(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": answer}]

    plain = PreferencePairs().format({"chosen": talk("Good."), "rejected": talk("Bad.")})
    for further in ({"prompt": "Hi?", "messages": talk("Good.")}, {"prompt": "Hi? "}, {"question": "Hi?", "score": 3}):
        found = PreferencePairs().format({**further, "chosen": talk("Good."), "rejected": talk("Bad.")})
        assert (found.prompt, found.chosen, found.rejected) == (plain.prompt, plain.chosen, plain.rejected)
        assert [turn.content for turn in (*found.prompt, *found.chosen)] == ["Hi?", "Good."]
    with pytest.raises(ValueError, match=r"expected 'chosen' to be what is answered to the prompt, .* its turn 'Who\?'"):
        PreferencePairs().format({"prompt": "Who?", "chosen": talk("Good."), "rejected": talk("Bad.")})
    pirate = PreferencePairs().format(
        {"system": "Be a pirate.", "prompt": "Hi?", "chosen": talk("Aye."), "rejected": talk("No.")}
    )
    assert [turn.content for turn in pirate.prompt] == ["Be a pirate.", "Hi?"]
    later = [{"role": "user", "content": "And now?"}]
    history = PreferencePairs().format({
        "conversations": talk("Good."), "chosen": later + talk("Yes.")[1:], "rejected": later + talk("Never.")[1:],
    })  # fmt: skip
    assert [turn.content for turn in (*history.prompt, *history.chosen)] == ["Hi?", "Good.", "And now?", "Yes."]
    turns_only = [{"role": "assistant", "content": "Good."}, {"role": "user", "content": "And?"}, *talk("So.")[1:]]
    kept = PreferencePairs().format({"prompt": "Hi?", "chosen": turns_only, "rejected": talk("Bad.")[1:]})
    assert len(kept.chosen) == 3, "an answer of several turns begins with the assistant"
