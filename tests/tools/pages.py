"""A page taken apart."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Elements, references and text of a page; fails on elements that are not closed in order."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.text, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def assert_loads_nothing(page):
    for name, value in page.attributes:
        if name in {"src", "href", "xlink:href", "action", "data"}:
            assert value.startswith("#"), (name, value)
    assert not {"link", "img", "iframe", "object", "embed", "form"} & set(page.elements)
    text = "".join(page.text)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def assert_ids_are_unique(page):
    identifiers = [value for name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    targets = {value[1:] for name, value in page.attributes if name == "xlink:href"}
    assert targets <= set(identifiers)
