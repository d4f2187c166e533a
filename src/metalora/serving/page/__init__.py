"""The web page of the service: plain files without a build step, served at `/`."""

from metalora.serving.page.page import add_page

__all__ = ["add_page"]
