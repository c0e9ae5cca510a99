from __future__ import annotations

import json
import math
import re
import shutil
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import pytest

from lightning_ft.bootstrap import Comparison, Verdict
from lightning_ft.charts import Bar, Series, histogram, interval_chart, line_chart, thin, tick_label, ticks
from lightning_ft.data.ledger import Ledger
from lightning_ft.errors import UsageError
from lightning_ft.page import PAGE_STYLE, heat_table, safe
from lightning_ft.report import render, write_report

if TYPE_CHECKING:
    from pathlib import Path

EVIL = "</pre><script>alert('x')</script>&amp;\"'<b onload=1>\x00\x1b\ud83d]]>"


def comparison(name: str, base: float, tuned: float, half: float, better: bool | None, **more: Any) -> Comparison:
    d = tuned - base
    return Comparison(name, base, tuned, d, d - half, d + half, 0.01, better, 200, **more)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as the product writes one."""
    folder = tmp_path_factory.mktemp("runs") / "instruct_support-answers_3"
    folder.mkdir()
    lines: list[dict[str, Any]] = []
    for step in range(10, 1001, 10):
        lines.append({
            "step": step, "epoch": step / 333, "loss": 1.1 + 2 * math.exp(-step / 150) + 0.05 * math.sin(step),
            "learning_rate": 2e-4 * min(1, step / 30) * (1 - step / 1100), "grad_norm": 1 + abs(math.sin(step)),
            "tokens_per_second": 5200.0 + 300 * math.sin(step), "supervised_tokens_per_second": 2900.0,
            "padding_share": 0.04, "peak_memory": 3_400_000_000, "device_use": 0.93, "seconds": step * 1.5,
        })  # fmt: skip
        if step % 100 == 0:
            lines.append({"step": step, "val_loss": 1.3 + 1.7 * math.exp(-step / 170), "val_token_accuracy": 0.4 + step / 4000})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 101')
    verdict = Verdict(
        [
            comparison("loss", 2.4817, 1.3204, 0.06, True, higher_is_better=False),
            comparison("perplexity", 11.96, 3.745, 0.7, True, higher_is_better=False),
            comparison("token_accuracy", 0.512, 0.684, 0.011, True, percent=True),
            comparison("exact_match", 0.12, 0.14, 0.05, None, percent=True),
            comparison("distinct_2", 0.71, 0.62, 0.03, False, percent=True),
        ],
        [
            {
                "row": "support.jsonl:17",
                "prompt": "### Instruction:\nWhere is my parcel?\n\n### Response:\n",
                "reference": "On its way.",
                "before": "The parcel is the parcel is the parcel is " * 12,
                "after": "It is on its way; you will get it on Friday.",
            },
            {"row": "support.jsonl:21", "prompt": EVIL, "reference": None, "before": "", "after": EVIL},
        ],
        rows=200,
    )  # fmt: skip
    (folder / "verdict.json").write_text(json.dumps(verdict.as_dict()))
    ledger = Ledger(max_length=512)
    for name, rows in (("data/support.jsonl", 1800), ("data/<more> & more.csv", 400)):
        ledger.add_read(name, rows + 4)
        ledger.add_failed(name, 1)
        ledger.add_dropped(name, "duplicate", 3)
        for i in range(rows):
            split = "test" if i % 10 == 0 else "validation" if i % 10 == 1 else "train"
            ledger.add_used(name, split, tokens=90 + i % 70, supervised=60, roles={"user": (40, 0), "assistant": (60, 60)})  # type: ignore[arg-type]  # a literal
        for i in range(40):
            ledger.add_cut(name, length=513 + 7 * (i % 17) + i, lost=20)
    ledger.closes()
    (folder / "ledger.json").write_text(json.dumps(ledger.as_dict()))
    record = {"status": "finished", "versions": {"torch": "2.10.0", "lightning": "2.6.6"}, "seed": 0, "note": EVIL, "empty": {}}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text("model: embedded\ndata:\n- data/support.jsonl\ntemplate: '<b>'\n")
    return folder


def parse(page: str) -> ET.Element:
    """The page as XML: every element is closed, every attribute quoted, every character allowed."""
    return ET.fromstring(page.partition("\n")[2])


def texts(page: str) -> str:
    return " ".join(parse(page).itertext())


def test_page_is_well_formed_and_stands_alone(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>\n")
    root = parse(page)
    names = {element.tag for element in root.iter()}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for element in root.iter():
        for key, value in element.attrib.items():
            assert not key.startswith("on")
            assert key not in ("src", "href")
            assert "url(" not in value
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page
    assert not [p for p in run.iterdir() if p.name.startswith(".tmp")]


def test_everything_that_the_run_left_is_shown(run: Path) -> None:
    shown = texts(render(run))
    for expected in (
        "instruct_support-answers_3", "Row lengths", "Full lengths of the rows that were cut",
        "Tuned against base model on 200 held-out rows: better in loss (2.482 \u2192 1.320)",
        "loss (lower is better)", "-1.161", "[-1.221, -1.101]", "+17.2 pp", "[+16.1 pp, +18.3 pp]", "51.2 %",
        "support.jsonl:17", "Where is my parcel?", "It is on its way; you will get it on Friday.", "(empty)", "(none)",
        "data/support.jsonl", "data/<more> & more.csv", "2,208", "role supervised", "duplicate",
        "versions.torch", "2.10.0", "model: embedded",
        "1 lines of metrics.jsonl that cannot be read",
    ):  # fmt: skip
        assert expected in shown, expected
    assert "Missing" not in shown


def test_foreign_text_is_only_ever_text(run: Path) -> None:
    page = render(run)
    assert "<script" not in page
    assert "<b>" not in page
    pres = [element.text for element in parse(page).iter("pre")]
    assert pres.count(EVIL.replace("\x00", "\ufffd").replace("\x1b", "\ufffd").replace("\ud83d", "\ufffd")) == 2
    page.encode("utf-8")


def test_curves_are_drawn_at_the_right_places(run: Path) -> None:
    figures = list(parse(render(run)).iter("figure"))
    loss = next(f for f in figures if "".join(f.itertext()).startswith("Loss"))
    lines = list(loss.iter("polyline"))
    assert [e.attrib["class"] for e in lines] == ["line c0", "line c1"]
    assert [len(e.attrib["points"].split()) for e in lines] == [100, 10]
    shown = "".join(loss.itertext())
    assert all(text in shown for text in ("training", "validation", "optimiser step", "nats per token", "1000"))


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        ("verdict.json", "the run left no verdict.json"), ("metrics.jsonl", "the run left no metrics.jsonl"),
        ("ledger.json", "the run left no ledger.json"), ("run.json", "the run left no run.json"),
        ("config.yaml", "the run left no config.yaml"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_to_be_missing(run: Path, tmp_path: Path, gone: str, sentence: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / gone).unlink()
    assert sentence in texts(render(folder))
    (folder / gone).write_bytes(b"\xff{[")
    texts(render(folder))


def test_an_empty_folder_gives_a_page_and_none_an_error(tmp_path: Path) -> None:
    shown = texts(write_report(tmp_path).read_text())
    assert "No verdict: base and tuned model were not compared." in shown
    assert shown.count("Missing") == 6
    with pytest.raises(UsageError, match="is none"):
        write_report(tmp_path / "nowhere")


def test_values_that_are_not_numbers_leave_a_page(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "loss": 2.0, "own_term": 3.0},
        {"step": 2, "loss": math.nan},
        {"step": 3, "loss": 1.0},
        {"loss": 1.0},
        3,
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    nan = math.nan
    verdict = Verdict([Comparison("m", 1.0, nan, nan, nan, nan, nan, None, 30)], rows=30)
    (tmp_path / "verdict.json").write_text(json.dumps(verdict.as_dict()))
    shown = texts(render(tmp_path))
    assert "not comparable" in shown
    assert "own_term" in shown
    assert "2 lines of metrics.jsonl" in shown, "one is no object, one of no step"


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_is_at_least_4_5_in_both_schemes(dark: bool) -> None:
    light_part, _, dark_part = PAGE_STYLE.partition("@media")
    colours = dict(re.findall(r"--(\w+): (#\w{6})", dark_part if dark else light_part))
    for name in ("text", "soft", "c0", "c1", "c2", "c3", "better", "worse"):
        for ground in ("page", "card"):
            a, b = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
            assert (a + 0.05) / (b + 0.05) >= 4.5, (name, ground)


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1000, 5) == [0, 200, 400, 600, 800, 1000]
    assert ticks(0.3, 2.2, 5) == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert ticks(-1, 1, 4) == pytest.approx([-1, -0.5, 0, 0.5, 1])
    assert ticks(5, 5, 4) == [5]
    assert [tick_label(v) for v in (0.0, 0.25, 2e-4, 1000, 15000, 1.2e6, -3e9)] == [
        "0",
        "0.25",
        "2e-4",
        "1000",
        "15k",
        "1.2M",
        "-3G",
    ]


def test_thinning_keeps_spikes_and_order() -> None:
    points = [(float(i), 1.0) for i in range(10_000)]
    points[7777] = (7777.0, 99.0)
    points[20] = (20.0, math.nan)
    kept = thin(points)
    assert len(kept) <= 400
    assert (7777.0, 99.0) in kept
    assert kept == sorted(kept)


def test_line_chart_by_hand() -> None:
    """x 0..10 over 46..306, y 0..1 over 182..24: (5, 0.5) is the middle, (176, 103)."""
    svg = line_chart([Series("a", [(0, 0), (5, 0.5), (10, 1)])], title="T", x_label="x", y_label="y")
    points = next(ET.fromstring(svg).iter("polyline")).attrib["points"]
    assert points == "46.0,182.0 176.0,103.0 306.0,24.0"
    assert svg.count("<circle") == 3
    gap = line_chart([Series("a", [(0, 0), (1, 1), (2, math.nan), (3, 1), (4, 0)])], title="T", x_label="x", y_label="y")
    assert gap.count("<polyline") == 2
    assert line_chart([Series("a", [(0, math.nan)])], title="T", x_label="x", y_label="y") == ""
    assert "<circle" in line_chart([Series("a", [(3, 2.0)])], title="T", x_label="x", y_label="y")


def test_interval_chart_has_better_on_the_right_for_every_metric() -> None:
    """Half-width 146 is the largest absolute value of the row: a loss that falls by 1 in [-2, -0.5] reaches 160 + 73."""
    bars = [Bar("loss", "d", -1.0, -2.0, -0.5, "better", flipped=True), Bar("acc", "d", -0.5, -1.0, 0.5, "none")]
    rects = [e for e in ET.fromstring(interval_chart(bars, title="T")).iter("rect") if e.attrib.get("class")]
    assert [(float(e.attrib["x"]), float(e.attrib["width"])) for e in rects] == [(160.0, 73.0), (87.0, 73.0)]
    assert interval_chart([Bar("m", "", math.nan, 0, 0, "none")], title="T") == ""


def test_histogram_counts_everything_once() -> None:
    svg = histogram({1: 5, 2: 3, 100: 1}, title="T", x_label="x", y_label="rows", bins=10)
    rects = list(ET.fromstring(svg).iter("rect"))
    assert len(rects) == 2
    heights = [float(e.attrib["height"]) for e in rects]
    assert heights[0] / heights[1] == pytest.approx(8, rel=0.01)
    assert "9 values from 1 to 100" in svg
    assert histogram({}, title="T", x_label="x", y_label="y") == ""


def test_four_lines_can_be_told_apart_and_named() -> None:
    svg = line_chart(
        [Series(name, [(0, i), (1, i + 1)]) for i, name in enumerate("ABCDE")], title="T", x_label="x", y_label="y"
    )
    root = ET.fromstring(svg)
    assert [e.attrib["class"] for e in root.iter("polyline")] == ["line c0", "line c1", "line c2", "line c3"]
    legend = [e.text for e in root.iter("text") if e.text in set("ABCDE")]
    assert sorted(name or "" for name in legend) == ["A", "B", "C", "D"]


def test_counts_are_shaded_by_their_share_of_the_row() -> None:
    """Of 10 in five shades: 1 is a tenth, the first shade; 3 the second; 6 the third; and no count has none."""
    table = ET.fromstring(
        f"<x>{heat_table(['a<b', 'c', 'd'], [[1, 3, 6], [0, 0, 0], [0, 2, 0]], corner='right', caption='C')}</x>"
    )
    cells = [(cell.text, cell.attrib["class"].split()[1]) for cell in table.iter("td")]
    assert cells == [
        ("1", "heat1"), ("3", "heat2"), ("6", "heat3"), ("0", "heat0"), ("0", "heat0"), ("0", "heat0"),
        ("0", "heat0"), ("2", "heat5"), ("0", "heat0"),
    ]  # fmt: skip
    assert [cell.text for cell in table.iter("th")] == ["right", "1", "2", "3", "1 a<b", "2 c", "3 d"]


def test_safe_replaces_what_no_page_may_hold() -> None:
    assert safe("a\x00b\ud800<&>\"'\t\n") == "a\ufffdb\ufffd&lt;&amp;&gt;&quot;&#x27;\t\n"
