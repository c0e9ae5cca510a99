from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning_ft_tasks.classifier import CLASSIFIER, ClassifiedUnsafe, Classifier
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast, pipeline

from lightning_ft.cli import main
from lightning_ft.errors import UsageError
from lightning_ft.testing import check_metric
from lightning_ft.types import Conversation, Message, ScoredRow

if TYPE_CHECKING:
    from pathlib import Path

KIND, RUDE = ["thank", "you", "friend", "nice", "day"], ["idiot", "stupid", "hate", "ugly", "fool"]
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
LENGTH = 16


def row(prediction: str | None) -> ScoredRow:
    return ScoredRow("f:1", Conversation((Message("user", "Hello?"), Message("assistant", ""))), prediction=prediction)


def save_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *KIND, *RUDE])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_max_length=LENGTH,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return tokenizer


def config(labels: list[str], **options: Any) -> BertConfig:
    return BertConfig(
        vocab_size=len(SPECIAL) + len(KIND) + len(RUDE), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=LENGTH, id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)}, **options,
    )  # fmt: skip


def trained(folder: Path, labels: list[str], **options: Any) -> Path:
    """A classifier that knows rude words: its labels but the first are theirs."""
    torch.manual_seed(0)
    tokenizer = save_tokenizer(folder)
    model = BertForSequenceClassification(config(labels, **options))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    texts = [text for words in (KIND, RUDE) for a in words for b in KIND for text in (f"{a} {b}", f"{b} {a}")]
    rude = torch.tensor([any(word in text.split() for word in RUDE) for text in texts])
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    for _ in range(40):
        logits = model(**batch).logits
        if logits.shape[1] == 1 or model.config.problem_type == "multi_label_classification":
            wanted = torch.zeros_like(logits)
            wanted[:, -1] = rude.float()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)
        else:
            loss = torch.nn.functional.cross_entropy(logits, rude.long())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("classifier"), ["neutral", "toxic"])


TEXTS = ["thank you friend", "you idiot", "hate hate hate", "nice day", "you", "what a day you fool"]


def test_equal_to_the_pipeline_of_transformers(folder: Path) -> None:
    published: Any = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    wanted = [next(label["score"] for label in found if label["label"] == "toxic") for found in published(TEXTS)]
    assert max(wanted) > 0.9
    assert min(wanted) < 0.1
    classifier = Classifier.load(str(folder))
    assert classifier.unsafety(TEXTS) == pytest.approx(wanted, abs=1e-6)
    assert classifier.unsafety(["", " \n"]) == [0.0, 0.0]
    assert classifier.unsafety([]) == []


def test_labels_that_do_not_exclude_each_other(tmp_path: Path) -> None:
    folder = trained(tmp_path, ["other", "insult"], problem_type="multi_label_classification")
    published: Any = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    wanted = [next(label["score"] for label in found if label["label"] == "insult") for found in published(TEXTS)]
    assert Classifier.load(str(folder)).unsafety(TEXTS) == pytest.approx(wanted, abs=1e-6)


def test_one_label(tmp_path: Path) -> None:
    found = Classifier.load(f"{trained(tmp_path, ['LABEL_0'])}#LABEL_0").unsafety(["you idiot", "nice day"])
    assert found[0] > 0.9
    assert found[1] < 0.1


def test_of_a_long_answer_the_worst_piece_counts(folder: Path) -> None:
    text = " ".join(["nice day"] * 40 + ["idiot"] + ["thank you"] * 40)
    found = Classifier.load(str(folder)).unsafety([text, " ".join(["nice day"] * 80)])
    assert found[0] > 0.9
    assert found[1] < 0.1


def test_metric(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CLASSIFIER, str(folder))
    check_metric(ClassifiedUnsafe, [row("nice day")] * 6, [row("stupid")] * 6)
    made = ClassifiedUnsafe()
    assert made.signature.startswith(f"{folder.name}#toxic|weights:")
    made.update([row("nice day"), row("you idiot"), row("")])
    kind, rude = Classifier.load(str(folder)).unsafety(["nice day", "you idiot"])
    assert float(made.compute()) == pytest.approx((kind + rude + 0) / 3)
    with pytest.raises(ValueError, match="f:1: expected a generated answer"):
        made.score(row(None))


def test_labels_are_named(folder: Path) -> None:
    rude, kind = (Classifier.load(f"{folder}#{label}").unsafety(["you idiot"])[0] for label in ("TOXIC", "neutral"))
    assert rude + kind == pytest.approx(1)
    with pytest.raises(UsageError, match=r"of neutral, toxic; got 'toxi'\. Did you mean 'toxic'\?"):
        Classifier.load(f"{folder}#toxi")


def test_what_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CLASSIFIER, raising=False)
    with pytest.raises(UsageError, match=f"Expected {CLASSIFIER} to name a classifier for --metrics classified_unsafe"):
        ClassifiedUnsafe().check(row(None))
    with pytest.raises(UsageError, match="got '/gone', which cannot be loaded"):
        Classifier.load("/gone")
    unnamed, headless = tmp_path / "unnamed", tmp_path / "headless"
    trained(unnamed, ["LABEL_0", "LABEL_1"])
    with pytest.raises(UsageError, match=r"which labels of .* are unsafe, of LABEL_0, LABEL_1"):
        Classifier.load(str(unnamed))
    save_tokenizer(headless)
    BertModel(config(["neutral", "toxic"])).save_pretrained(headless)
    with pytest.raises(UsageError, match=r"which has no classifier\.bias, classifier\.weight: what it would say is drawn"):
        Classifier.load(str(headless))


def test_from_the_command_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"prediction": text}) + "\n" for text in ("nice day", "you idiot")), encoding="utf-8")
    words = ["score", "--predictions", str(file), "--metrics", "classified_unsafe", "--json"]
    monkeypatch.delenv(CLASSIFIER, raising=False)
    assert main(words) == 2
    assert capsys.readouterr().err.count(f"Expected {CLASSIFIER} to name a classifier") == 1, "not once a row"
    monkeypatch.setenv(CLASSIFIER, str(folder))
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["classified_unsafe"] == pytest.approx(
        sum(Classifier.load(str(folder)).unsafety(["nice day", "you idiot"])) / 2
    )
