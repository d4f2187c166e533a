"""What a report as HTML holds: its tables as text, its sources, and whether its tags are closed in their order."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "link"}


class Page(HTMLParser):
    """A page whose tags are closed in their order.

    Attributes:
        title: The text of its title.
        sources: All values of src and href.
        labels: All values of aria-label.
        count: How often each tag occurs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.title = ""
        self.sources: list[str] = []
        self.labels: list[str] = []
        self.count: dict[str, int] = {}
        self._tables: list[list[list[str]]] = []
        self._captions: list[str] = []

    def table(self, caption: str) -> list[list[str]]:
        """Return the rows of the table of that caption as text, the headings first."""
        return self._tables[self._captions.index(caption)]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]
        self.labels += [str(value) for name, value in attrs if name == "aria-label"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._tables.append([])
            self._captions.append("")
        elif tag == "tr":
            self._tables[-1].append([])
        elif tag in ("td", "th"):
            self._tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "caption" in self.open:
            self._captions[-1] += data
        elif "td" in self.open or "th" in self.open:
            self._tables[-1][-1][-1] += data
        elif self.open and self.open[-1] == "title" and "svg" not in self.open:
            self.title += data


def parsed(content: str) -> Page:
    """Return a page; it fails if a tag is not closed."""
    page = Page()
    page.feed(content)
    assert page.open == []
    return page
