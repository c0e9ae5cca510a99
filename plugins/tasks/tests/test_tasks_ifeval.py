"""Our checks beside IFEval's own, on generated answers, by lm-eval; two instructions need NLTK's `punkt_tab`, too."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
from lightning_ft_tasks.constraints import IFEVAL, constraints_of

PIECES = (
    "the", "river", "land;", "Dr.", "e.g.", "A.B.", "3.5", "1,000", "Yes.", "No!", "What?", "ok...", "P.S.", "P. P. S",
    "<<Title>>", "<<>>", "[name]", "*hi*", "**bold**", "***", "******", '"', "I", "- one", "* two", "**", "--",
    "HELLO-World", "DON'T", "SECTION 1", "Section 2", "Section X", "My answer is yes.", "My answer is no", '{"a": 1}',
    "```json", "```", "The land is by the river.", "She said: no, never again!", "\n", "\n\n", "\n\n", "bye",
)  # fmt: skip
SENTENCES = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.",
    "How many clips did she sell?", "A BIG storm came over the land.", "Mr. Smith lives in the U.S. with his dog!",
    "It costs $3.50 a day.", "The rest is for you and me.", "He wrote: *never again*, and left.", "* An apple\n* A pear",
)  # fmt: skip
NEARLY = {
    "length_constraints:number_sentences": 0.9, "language:response_language": 0.8, "change_case:english_capital": 0.85,
    "change_case:english_lowercase": 0.85,
}  # fmt: skip
"""Instructions where ours differ for a reason (README), and the share of answers on which they agree at least."""
BY_NLTK = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
"""Instructions for which theirs reads NLTK's data, which are downloaded."""


def answer(draw: random.Random) -> str:
    """A text with something of everything that is looked for."""
    pool = draw.choice([PIECES, SENTENCES])
    text = draw.choice([" ", " ", "\n\n", "***", "******"]).join(draw.choices(pool, k=draw.randint(0, 8)))
    return draw.choice([
        text, text, text, text, text.upper(), text.lower(), f'"{text}"', text.replace(",", ""), f"{text}\n\nP.S. bye",
        json.dumps([text]), f"```json\n{json.dumps(text)}\n```",
    ])  # fmt: skip


def arguments(name: str, draw: random.Random) -> dict[str, Any]:
    """Arguments of an instruction that some answers meet."""
    relation, few, word = draw.choice(["at least", "less than"]), draw.randint(1, 4), draw.choice(["the", "land", "no", "she"])
    found: dict[str, dict[str, Any]] = {
        "keywords:existence": {"keywords": [word]},
        "keywords:frequency": {"keyword": word, "frequency": few, "relation": relation},
        "keywords:forbidden_words": {"forbidden_words": [word]},
        "keywords:letter_frequency": {"letter": draw.choice("aEt"), "let_frequency": few * 3, "let_relation": relation},
        "language:response_language": {"language": draw.choice(["en", "de"])},
        "length_constraints:number_sentences": {"num_sentences": few, "relation": relation},
        "length_constraints:number_paragraphs": {"num_paragraphs": few},
        "length_constraints:number_words": {"num_words": few * 8, "relation": relation},
        "length_constraints:nth_paragraph_first_word": {
            "num_paragraphs": few, "nth_paragraph": draw.randint(1, few), "first_word": draw.choice(["the", "how", "natalia"]),
        },
        "detectable_content:number_placeholders": {"num_placeholders": 1},
        "detectable_content:postscript": {"postscript_marker": draw.choice(["P.S.", "P.P.S"])},
        "detectable_format:number_bullet_lists": {"num_bullets": few},
        "detectable_format:number_highlighted_sections": {"num_highlights": few},
        "detectable_format:multiple_sections": {"section_spliter": draw.choice(["Section", "SECTION"]), "num_sections": 1},
        "combination:repeat_prompt": {"prompt_to_repeat": SENTENCES[0]},
        "startend:end_checker": {"end_phrase": draw.choice(["bye", "me."])},
        "change_case:capital_word_frequency": {"capital_frequency": few, "capital_relation": relation},
    }  # fmt: skip
    return found.get(name, {})


def test_ours_are_theirs() -> None:
    nltk = pytest.importorskip("nltk")
    pytest.importorskip("lm_eval")
    detector = pytest.importorskip("langdetect")
    pytest.importorskip("immutabledict")
    try:
        nltk.data.find("tokenizers/punkt_tab")
        names = list(IFEVAL)
    except LookupError:
        names = [name for name in IFEVAL if name not in BY_NLTK]
    theirs = pytest.importorskip("lm_eval.tasks.ifeval.instructions_registry").INSTRUCTION_DICT
    util = pytest.importorskip("lm_eval.tasks.ifeval.instructions_util")
    util._get_sentence_tokenizer = lambda: nltk.tokenize.punkt.PunktTokenizer("english")  # theirs loads a pickle of old NLTKs
    detector.DetectorFactory.seed = 0
    assert set(theirs) == set(IFEVAL)
    draw, asked = random.Random(0), 250
    equal, met = Counter[str](), Counter[str]()
    for text in (answer(draw) for _ in range(asked)):
        for name in names:
            values = arguments(name, draw)
            checker = theirs[name](name)
            checker.build_description(**values)
            wanted = bool(text.strip() and checker.check_following(text))
            ours = constraints_of({"instruction_id_list": [name], "kwargs": [values]})[0].met(text, "")
            equal[name] += ours is wanted
            met[name] += wanted
    shares = {name: equal[name] / asked for name in names}
    assert {name: share for name, share in shares.items() if share < NEARLY.get(name, 1)} == {}
    assert all(0 < met[name] < asked for name in names if name != "combination:repeat_prompt"), met
