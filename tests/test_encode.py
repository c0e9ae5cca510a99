from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import pytest

from lightning_ft.data.encode import Encoder
from lightning_ft.data.render import Template
from lightning_ft.errors import DataError, UsageError
from lightning_ft.testing.models import tiny_tokenizer
from lightning_ft.types import IGNORE_INDEX, Classified, Conversation, Encoded, Message, Text, Unpaired

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

    from lightning_ft.types import Example


def pair(question: str, answer: str, **options: Any) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer, **options)))


def labelled(tokenizer: Any, encoded: Encoded) -> str:
    return str(tokenizer.decode([token for token in encoded.labels if token != IGNORE_INDEX]))


@pytest.fixture(scope="module")
def qwen(shared_data: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared_data / "tokenizer_qwen2")


def sentencepiece(text: str = "a b c d e hello world user assistant") -> Any:
    """A tokenizer as Llama 2 has it: blanks are a sign of their own, a first token, unknown characters as bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *bytes_, "\u2581", *sorted(set(text) - {" "})])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("name", ["chat", "alpaca", "tags"])
@pytest.mark.parametrize(
    "answer",
    ["Paris.", "\u00e4\u00f6 \u6771\u4eac \U0001f600\U0001f468\u200d\U0001f469", "  spaced \n\n out ", "x" * 500],
)
def test_labels_are_the_tokens_of_the_answer_with_its_stop(name: str, answer: str, qwen: Any) -> None:
    template = Template.resolve(name, qwen)
    conversation = Conversation((*pair("Where? \u00fc", answer).messages, *pair(answer or "y", "Second.").messages))
    (encoded,) = Encoder(qwen, template, 4096).encode([conversation], ["f:1"])
    messages = [message.as_dict() for message in conversation.messages]
    assert encoded.input_ids == qwen.apply_chat_template(messages, chat_template=template.source, return_dict=True)["input_ids"]
    stop = {"chat": "<|im_end|>", "alpaca": qwen.eos_token, "tags": "</response>" + qwen.eos_token}[name]
    assert labelled(qwen, encoded) == f"{answer}{stop}Second.{stop}"
    assert encoded.labels == [
        label if label == IGNORE_INDEX else token for token, label in zip(encoded.input_ids, encoded.labels, strict=True)
    ]
    assert encoded.roles["assistant"] == (encoded.supervised, encoded.supervised)
    assert sum(tokens for tokens, _ in encoded.roles.values()) == len(encoded.input_ids)


@pytest.mark.parametrize("answer", ["", "\n"])
def test_blank_answers_train_at_most_one_token_that_began_before(answer: str, qwen: Any) -> None:
    for name, stop in (("chat", "<|im_end|>"), ("alpaca", qwen.eos_token), ("tags", "</response>" + qwen.eos_token)):
        (encoded,) = Encoder(qwen, Template.resolve(name, qwen), 4096).encode([pair("q", answer)], ["f:1"])
        got = labelled(qwen, encoded)
        assert got.endswith(answer + stop)
        first = next(label for label in encoded.labels if label != IGNORE_INDEX)
        assert len(got.removesuffix(answer + stop)) < len(qwen.decode([first]))


def test_masks_agree_with_transformers_own_for_the_marked_templates(qwen: Any) -> None:
    for name in ("alpaca", "tags"):
        template = Template.resolve(name, qwen)
        chat = [message.as_dict() for message in (*pair("a b", "c d \u00e4").messages, *pair("e", "f g").messages)]
        theirs = qwen.apply_chat_template(
            chat, chat_template=template.source, return_dict=True, return_assistant_tokens_mask=True
        )
        conversation = Conversation(tuple(Message(m["role"], m["content"]) for m in chat))
        (ours,) = Encoder(qwen, template, 4096).encode([conversation], ["f:1"])
        assert [int(label != IGNORE_INDEX) for label in ours.labels] == theirs["assistant_masks"]


def test_a_token_across_the_border_is_trained_if_it_ends_inside(qwen: Any) -> None:
    source = (
        "{% for m in messages %}{{ m['role'].upper() + ':' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    (encoded,) = Encoder(qwen, Template("x", source, qwen), 99).encode([pair("q", "://x")], ["f:1"])
    text = f"USER:qASSISTANT:://x{qwen.eos_token}"
    offsets = qwen(text, return_offsets_mapping=True)["offset_mapping"]
    start = text.index("://x")
    assert any(begin < start < end for begin, end in offsets), "this text is meant to have a token across the border"
    assert [label != IGNORE_INDEX for label in encoded.labels] == [end > start for _, end in offsets]


def test_every_real_answer_survives_the_round_trip(qwen: Any, shared_data: Path) -> None:
    with (shared_data / "medquad" / "medquad.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(300), strict=False)]
    for name in ("chat", "alpaca"):
        encoded = Encoder(qwen, Template.resolve(name, qwen), 1 << 20).encode(
            [pair(row["question"], row["answer"]) for row in rows], [str(i) for i in range(len(rows))]
        )
        stop = "<|im_end|>" if name == "chat" else qwen.eos_token
        for row, item in zip(rows, encoded, strict=True):
            assert labelled(qwen, item) == normalize("NFC", row["answer"]) + stop


def test_sentencepiece_has_one_first_token_and_right_offsets() -> None:
    tokenizer = sentencepiece()
    template = Template.resolve("tags", tokenizer)
    (encoded,) = Encoder(tokenizer, template, 4096).encode([pair("hello", " \u00e4 world")], ["f:1"])
    assert encoded.input_ids.count(1) == 1
    assert encoded.input_ids[0] == 1
    assert labelled(tokenizer, encoded).replace("</s>", "") == " \u00e4 world</response>"
    assert encoded.labels[-1] == tokenizer.eos_token_id
    template.install(tokenizer)
    chat = [message.as_dict() for message in pair("hello", " \u00e4 world").messages]
    assert tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"] == encoded.input_ids  # train = serve


def test_two_first_tokens_are_refused() -> None:
    tokenizer = sentencepiece()
    template = Template(
        "twice", "{{ bos_token + bos_token }}" + Template.resolve("tags", tokenizer).source.partition("\n")[2], tokenizer
    )
    with pytest.raises(DataError, match=r"^data.jsonl:7: .*'twice' writes it twice"):
        Encoder(tokenizer, template, 99).encode([pair("a", "b")], ["data.jsonl:7"])


def test_raw_text_is_trained_with_the_end_of_text(qwen: Any) -> None:
    tokenizer = sentencepiece()
    (raw,) = Encoder(tokenizer, Template.resolve("auto", tokenizer), 99).encode([Text("hello world")], ["f:1"])
    assert raw.input_ids == [*tokenizer("hello world")["input_ids"], tokenizer.eos_token_id]
    assert raw.labels == [IGNORE_INDEX, *raw.input_ids[1:]]
    (plain,) = Encoder(qwen, Template.resolve("auto", qwen), 99).encode([Text("hello world")], ["f:1"])
    assert plain.labels == plain.input_ids == [*qwen("hello world")["input_ids"], qwen.eos_token_id]
    assert Encoder(qwen, Template.resolve("auto", qwen), 99).render_example(Text("hi")).text == "hi" + qwen.eos_token


def test_truncation_is_on_the_right_and_accounted_for(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    template = Template.resolve("auto", tiny_tokenizer)
    examples: list[Example] = [pair("q", "abcdef", weight=0.5), Text("x" * 50)]
    whole = Encoder(tiny_tokenizer, template, 1000).encode(examples, ["f:1", "f:2"])
    for limit in (2, len(whole[0].input_ids) - 3, len(whole[0].input_ids), 200):
        for full, cut in zip(whole, Encoder(tiny_tokenizer, template, limit).encode(examples, ["f:1", "f:2"]), strict=True):
            assert cut.input_ids == full.input_ids[:limit]
            assert cut.labels == full.labels[:limit]
            assert cut.truncated == max(0, len(full.input_ids) - limit)
            lost = [label for label in full.labels[limit:] if label != IGNORE_INDEX]
            assert cut.supervised_lost == len(lost)
            assert sum(tokens for tokens, _ in cut.roles.values()) == len(cut.input_ids)


def test_weights_per_turn(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(tiny_tokenizer, Template.resolve("auto", tiny_tokenizer), 999)
    (same,) = encoder.encode([pair("q", "ab", weight=0.5)], ["f:1"])
    assert (same.weight, same.weights) == (0.5, None)
    both = Conversation((*pair("q", "ab", weight=0.5).messages, *pair("q", "cd", weight=2.0).messages))
    (mixed,) = encoder.encode([both], ["f:1"])
    assert mixed.weight == 1.0
    assert mixed.weights is not None
    assert [weight for weight, label in zip(mixed.weights, mixed.labels, strict=True) if label != IGNORE_INDEX] == [0.5] * 3 + [
        2.0
    ] * 3
    (silent,) = encoder.encode([pair("q", "ab", weight=0.0)], ["f:1"])
    assert set(silent.labels) == {IGNORE_INDEX}


def test_the_batch_does_not_matter_and_encoders_can_be_pickled(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tiny_tokenizer("a", padding="max_length", truncation=True, max_length=3)  # leaves its settings in the backend
    encoder = Encoder(tiny_tokenizer, Template.resolve("auto", tiny_tokenizer), 999)
    examples = [pair("q" * i, "\u00e4" * i) for i in range(1, 40)]
    rows = [f"f:{i}" for i in range(1, 40)]
    together = encoder.encode(examples, rows)
    other: Encoder = pickle.loads(pickle.dumps(encoder))
    assert [other.encode([example], [row])[0] for example, row in zip(examples, rows, strict=True)] == together
    assert other.fingerprint == encoder.fingerprint


def test_fingerprint_follows_what_changes_the_tokens(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    chat = Template.resolve("chat", tiny_tokenizer)
    first = Encoder(tiny_tokenizer, chat, 99).fingerprint
    assert first == Encoder(tiny_tokenizer, chat, 99).fingerprint
    others = [
        Encoder(tiny_tokenizer, chat, 98).fingerprint,
        Encoder(tiny_tokenizer, Template.resolve("tags", tiny_tokenizer), 99).fingerprint,
    ]
    tiny_tokenizer.add_tokens(["new"])
    others.append(Encoder(tiny_tokenizer, chat, 99).fingerprint)
    assert len({first, *others}) == 4


def test_a_class_is_the_answer_to_its_text(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(tiny_tokenizer, Template.resolve("auto", tiny_tokenizer), 99)
    of_class, of_turns = encoder.encode([Classified("My card is gone.", "lost"), pair("My card is gone.", "lost")], ["a", "a"])
    assert of_class == of_turns
    assert any(label != IGNORE_INDEX for label in of_class.labels)


def test_wrong_use_is_said(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    template = Template.resolve("auto", tiny_tokenizer)
    with pytest.raises(UsageError, match="fast tokenizer"):
        Encoder(object(), template, 9)
    with pytest.raises(UsageError, match="got Unpaired, which is no single text"):
        Encoder(tiny_tokenizer, template, 9).render_example(Unpaired((), (), desirable=True))
    alpaca = Encoder(tiny_tokenizer, Template.resolve("alpaca", tiny_tokenizer), 99)
    with pytest.raises(DataError, match=r"^d.jsonl:3: .*'alpaca'.*'tool'"):
        alpaca.encode([Conversation((Message("tool", "x"), Message("assistant", "y")))], ["d.jsonl:3"])


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7])
def test_rows_are_the_same_in_chunks_and_alone(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendered, tokenised and labelled side by side, and still each row its own, also around one that is refused."""
    monkeypatch.setattr("lightning_ft.data.encode.CHUNK", 2)
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, Template.resolve("alpaca", tokenizer), 60)
    examples: list[Example] = [pair(f"{i} " * (i + 1), f"a{i}") if i % 3 else Text(f"text {i}") for i in range(rows)]
    if rows > 4:
        examples[4] = Unpaired((), (), desirable=True)
    names = [f"f:{i}" for i in range(rows)]
    together = encoder.try_encode(examples, names)
    assert together == [encoder.try_encode([example], [name])[0] for example, name in zip(examples, names, strict=True)]
    assert [i for i, item in enumerate(together) if isinstance(item, str)] == ([4] if rows > 4 else [])
    if rows:
        with pytest.raises(ValueError, match="zip"):
            encoder.try_encode(examples, names[1:])


def test_a_tokenizer_that_fails_in_its_thread_fails_here(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, Template.resolve("alpaca", tokenizer), 60)
    monkeypatch.setattr("lightning_ft.data.encode.CHUNK", 1)
    with pytest.raises((TypeError, UnicodeEncodeError)):
        encoder.try_encode([Text("a"), Text("\ud800"), Text("b")], ["f:1", "f:2", "f:3"])
