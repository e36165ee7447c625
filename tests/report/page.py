"""A report's page, as the tests read it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from pmm_ray.report import build_report

from .run_folder import RunFolder

VOID = {"meta", "img", "br", "hr", "input", "link", "rect", "line", "polyline", "polygon"}


class Page(HTMLParser):
    """Checks that tags are balanced; collects text, attributes and pictures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.stack.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def read_page(run: RunFolder) -> tuple[str, Page]:
    html = Path(build_report(run.uri)).read_text(encoding="utf-8")
    return html, Page(html)
