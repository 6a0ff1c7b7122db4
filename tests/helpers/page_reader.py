"""Reading the page of a comparison as a program without scripts does."""

import re
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """The cells by heading of each line of the results, and every address loaded."""

    def __init__(self, path: Path):
        super().__init__()
        self.lines: list[dict[str, str]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self._label: str | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag == "tbody":
            self.lines.append({})
        self.addresses += [
            v for k, v in attrs.items() if re.search("src|href|data$", k)
        ]
        self._label = attrs.get("data-label") if tag == "td" else None
        if self._label:
            self.lines[-1][self._label] = ""

    def handle_data(self, data):
        if self._label:
            self.lines[-1][self._label] += data

    def handle_endtag(self, tag):
        self._label = None if tag == "td" else self._label
