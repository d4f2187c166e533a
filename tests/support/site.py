"""The built documentation site: its pages, their links, and a server of its files."""

import functools
import http.server
import threading
from contextlib import contextmanager
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """A handler that logs nothing."""

    def log_message(self, *_):
        """Log nothing."""


@contextmanager
def served(folder):
    """Serve a folder at this machine; gives the address."""
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def pages_of(folder):
    """The pages of a site but the one for addresses that do not exist, relative to its folder."""
    return sorted(
        path.relative_to(folder).as_posix().removesuffix("index.html")
        for path in folder.rglob("*.html")
        if path.name != "404.html"
    )


class Document(HTMLParser):
    """The names and the addresses in a page.

    Attributes:
        names: What an address can point at with #.
        addresses: What the page links to, shows or loads.
    """

    def __init__(self, text):
        super().__init__()
        self.names, self.addresses = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        """Keep the names and the addresses of a tag."""
        for name, value in attributes:
            if name in ("id", "name"):
                self.names.add(value)
            elif name in ("href", "src") and value:
                self.addresses.append(value)


def broken_addresses(folder):
    """The local addresses in the pages of a site that lead to no file, or to no place in it."""
    documents = {
        path.resolve(): Document(path.read_text()) for path in folder.rglob("*.html") if path.name != "404.html"
    }
    broken = []
    for path, document in documents.items():
        for address in document.addresses:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            is_place = (
                not parts.fragment or target not in documents or unquote(parts.fragment) in documents[target].names
            )
            if not target.is_file() or not is_place:
                broken.append(f"{path.relative_to(folder.resolve())}: {address}")
    return broken
