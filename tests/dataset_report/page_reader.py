"""Reads the page of a dataset as a browser would, with Python's own parser."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

_EMPTY_ELEMENTS = {"img", "meta", "link", "input", "br"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    parent: Element | None = None
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str | None = None, of_class: str | None = None) -> list[Element]:
        """Elements below this one, in order."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                classes = (child.attributes.get("class") or "").split()
                if tag in (None, child.tag) and (of_class is None or of_class in classes):
                    found.append(child)
                found += child.all(tag, of_class)
        return found

    def by_id(self, name: str) -> Element:
        (found,) = [element for element in self.all() if element.attributes.get("id") == name]
        return found


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = self._open = Element("root", {})

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs), self._open)
        self._open.children.append(element)
        if tag not in _EMPTY_ELEMENTS:
            self._open = element

    def handle_endtag(self, tag):
        assert self._open.tag == tag, f"</{tag}> closes <{self._open.tag}>"
        self._open = self._open.parent

    def handle_data(self, data):
        self._open.children.append(data)


def read_page(path: Path) -> Element:
    """The page as a tree. Fails where an element is not closed."""
    builder = _Builder()
    builder.feed(path.read_text(encoding="utf-8"))
    builder.close()
    assert builder._open is builder.root
    return builder.root


def cards(page: Element) -> dict[str, Element]:
    """The images of the page by name."""
    found = page.all("article")
    by_name = {card.all("h4")[0].text: card for card in found}
    assert len(by_name) == len(found)
    return by_name


def pixels(image: Element) -> np.ndarray:
    """What an <img> shows: float64 (H, W) or (H, W, 3)."""
    head, data = image.attributes["src"].split(",", 1)
    assert head in ("data:image/jpeg;base64", "data:image/png;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))), dtype=np.float64)
