"""The files of a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.atomic import write_json, write_text
from lightning_ft_compare.markdown import markdown
from lightning_ft_compare.page import page

if TYPE_CHECKING:
    from lightning_ft_compare.results import Report

COMPARISON, MARKDOWN, PAGE = "comparison.json", "report.md", "report.html"


def write(report: Report) -> None:
    """Write comparison.json, report.md and report.html into the report's folder."""
    assert report.folder is not None
    write_json(report.folder / COMPARISON, report.as_dict())
    write_text(report.folder / MARKDOWN, markdown(report))
    write_text(report.folder / PAGE, page(report))
