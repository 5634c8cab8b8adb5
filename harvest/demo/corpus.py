"""The demo corpus: text that every Python installation carries.

Two kinds of documents: the language's help topics (``pydoc_data.topics``) and the docstrings of the standard library.
The library's sources are parsed with :mod:`ast` and never imported, so collecting them runs no code. The order, and
with it every token of the demo cache, depends on the Python installation alone.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

from harvest.data.documents import Document

# Test-suites and vendored or generated code carry little prose, and distributors often leave these folders out.
_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "_pyrepl",
        "dist-packages",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)
_SKIPPED_PREFIXES = ("config-", "lib-dynload", "_sysconfigdata")
# A class with less text than this joins its module's document: a document of one line teaches nobody anything.
_OWN_DOCUMENT_CHARS = 400
_MIN_DOCUMENT_CHARS = 80

_DOMAINS: dict[str, tuple[str, ...]] = {
    "internet": (
        "email http urllib xmlrpc wsgiref smtplib smtpd imaplib ftplib poplib nntplib telnetlib socketserver socket ssl "
        "ipaddress html mailbox cgi cgitb netrc mimetypes webbrowser xml nturl2path uuid"
    ).split(),  # type: ignore[dict-item]
}


def documents() -> Iterator[Document]:
    raise NotImplementedError
