"""Tokens beyond a model's own: their rows, by hand, and the tokenizers that cannot have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from lightning_ft.backbone import load_tokenizer
from lightning_ft.loading import embedded_folder
from lightning_ft.testing.models import FAMILIES, Family, tiny_model, tiny_tokenizer
from lightning_ft.vocabulary import disturbing, grow, new_tokens, with_tokens

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_row_is_the_mean_of_its_pieces_and_the_others_stay(family: Family) -> None:
    model: Any = tiny_model(family)
    base: Any = tiny_model(family)
    before = tiny_tokenizer()
    after = with_tokens(before, [" ab", "c\u00e9"])
    size = len(before)
    assert new_tokens(before, after) == {size: " ab", size + 1: "c\u00e9"}
    grow(model, before, after)
    assert model.config.vocab_size == size + 2
    for name in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(base, name)().weight, getattr(model, name)().weight
        assert new.shape[0] == size + 2
        assert torch.equal(new[:size], old)
        places = [before.convert_tokens_to_ids(list(text)) for text in ("\u0120ab", "c\u00c3\u00a9")]
        torch.testing.assert_close(new[size:], torch.stack([old[ids].mean(0) for ids in places]))
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (family == "gpt2")


def test_the_head_may_have_a_bias() -> None:
    model: Any = tiny_model("llama")
    head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    model.lm_head = head
    before = tiny_tokenizer()
    grow(model, before, with_tokens(before, ["xy"]))
    x, y = (before.convert_tokens_to_ids(letter) for letter in "xy")
    torch.testing.assert_close(model.lm_head.bias[-1], (head.bias[x] + head.bias[y]) / 2)


def test_rows_to_spare_are_left_alone_unless_their_tokens_are_fresh() -> None:
    model: Any = tiny_model("llama")
    before = tiny_tokenizer()
    size = len(before)
    model.resize_token_embeddings(size + 8)
    kept = model.get_input_embeddings().weight.detach().clone()
    grow(model, before, after := with_tokens(before, ["ab", "bc"]))
    assert torch.equal(model.get_input_embeddings().weight, kept)
    grow(model, before, after, [size + 1])
    weight = model.get_input_embeddings().weight
    assert weight.shape == kept.shape
    assert torch.equal(weight[size], kept[size])
    torch.testing.assert_close(weight[size + 1], kept[before.convert_tokens_to_ids(["b", "c"])].mean(0))


def test_a_tokenizer_is_not_changed_and_its_copy_is_saved_whole(tmp_path: Path) -> None:
    before = load_tokenizer(str(embedded_folder()))
    size = len(before)
    after = with_tokens(before, [" myocarditis", " Kl\u00e4ger"])
    assert len(before) == size
    after.save_pretrained(tmp_path)
    text = "Der Kl\u00e4ger: acute myocarditis, myocarditis."
    again = load_tokenizer(str(tmp_path))
    ids = after(text, add_special_tokens=False)["input_ids"]
    assert again(text, add_special_tokens=False)["input_ids"] == ids
    assert again.decode(ids) == text
    assert ids.count(size) == 2
    assert ids.count(size + 1) == 1


def test_tokens_that_would_change_the_text_are_found() -> None:
    """A byte-level decoder takes the a umlaut of an added token for one byte, unless the space shows that it is text."""
    tokenizer = load_tokenizer(str(embedded_folder()))
    assert disturbing(tokenizer, ["myocarditis", " Kl\u00e4ger", "Kl\u00e4ger"]) == ["Kl\u00e4ger"]


def test_a_normaliser_that_marks_every_beginning_takes_no_tokens() -> None:
    """As in the tokenizers of Llama 2: what follows an added token gets a space that was not there."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({"\u2581": 0, "a": 1, "b": 2, "s": 3, ".": 4, ",": 5}, []))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    assert tokenizer.decode(tokenizer("ab b.")["input_ids"]) == "ab b."
    assert disturbing(tokenizer, [" ab", "ab"]) == [" ab", "ab"]
