"""The demo corpus: text that every Python installation carries.

Two kinds of documents: the language's help topics (``pydoc_data.topics``) and the docstrings of the standard library.
The library's sources are parsed with :mod:`ast` and never imported, so collecting them runs no code. The order, and
with it every token of the demo cache, depends on the Python installation alone.
"""

from __future__ import annotations

import ast
import gc
import sysconfig
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from ..data.documents import Document

# Test suites, and code that distributions leave out or that later versions dropped: little prose in any of them.
_SKIPPED_FOLDERS = {"idlelib", "lib2to3", "test", "tests", "turtledemo", "_pyrepl", "pydoc_data"}
_SKIPPED_FOLDERS |= {"__pycache__", "dist-packages", "lib-dynload", "site-packages"}  # not part of the standard library
_OWN_DOCUMENT_CHARS = 600  # a class with less text than this joins the document of its module
_MIN_DOCUMENT_CHARS = 100  # less than this is a heading without a text

# Coarse kinds of modules, after the chapters of the library reference.
_DOMAIN_MODULES = {
    "concurrency": "asyncio concurrent contextvars multiprocessing queue sched subprocess threading",
    "data": "_collections_abc _py_abc abc array bisect calendar collections copy copyreg dataclasses datetime "
    "_pydatetime _strptime enum functools graphlib heapq numbers operator pprint reprlib types weakref "
    "_weakrefset zoneinfo",
    "development": "bdb cProfile doctest ensurepip pdb profile pstats pydoc timeit trace tracemalloc typing unittest "
    "venv cmd code codeop zipapp",
    "files": "_compression bz2 configparser csv dbm filecmp fileinput fnmatch glob gzip linecache lzma netrc pathlib "
    "pickle pickletools plistlib shelve shutil sqlite3 tarfile tempfile tomllib zipfile",
    "gui": "tkinter turtle curses",
    "language": "__future__ _ast ast compileall dis importlib inspect keyword modulefinder opcode pkgutil py_compile "
    "pyclbr runpy symtable tabnanny token tokenize zipimport",
    "network": "cgi cgitb email ftplib html http imaplib imghdr ipaddress mailbox mailcap mimetypes nntplib "
    "nturl2path poplib smtpd smtplib sndhdr socket socketserver ssl telnetlib urllib uu uuid webbrowser wsgiref xml "
    "xmlrpc json base64 quopri",
    "numbers": "_pydecimal colorsys decimal fractions hashlib hmac random secrets statistics",
    "system": "_aix_support _osx_support argparse contextlib crypt ctypes distutils errno getopt getpass io _pyio "
    "locale logging ntpath optparse os platform posixpath pty selectors shlex signal site stat sysconfig syslog tty "
    "traceback warnings",
    "text": "codecs difflib encodings gettext re rlcompleter sre_compile sre_constants sre_parse string stringprep "
    "textwrap",
}
_DOMAIN = {module: domain for domain, modules in _DOMAIN_MODULES.items() for module in modules.split()}


def documents() -> Iterator[Document]:
    """Yield the help topics and the docstrings of the standard library in a fixed, shuffled order.

    The order follows a hash of each document's source, so any prefix is a fair sample of the whole. A document is one
    help topic, or the docstrings of one module or of one sizeable class, each function under its signature. A docstring
    that has occurred before is skipped. Sources: ``help:lambda``, ``doc:json.decoder``,
    ``doc:json.decoder#JSONDecoder``.
    """
    yield from _collected()


@cache  # seconds of parsing for 2 MB of text, which one harvest reads several times
def _collected() -> tuple[Document, ...]:
    with _without_collector():
        found = [*_help_topics(), *_docstrings(Path(sysconfig.get_path("stdlib")))]
    return tuple(sorted(found, key=lambda document: (zlib.crc32(document.source.encode()), document.source)))


def group_of(document: Document) -> str:
    """The unit that a split of the corpus must not cut: the help topic, or the module with all its classes.

    Sibling classes repeat one another's phrases, so a held-out class of a seen module would flatter a model.
    """
    kind, _, name = document.source.partition(":")
    return document.source if kind == "help" else f"doc:{name.partition('#')[0]}"


@contextmanager
def _without_collector() -> Iterator[None]:
    """Syntax trees are many small objects and no garbage: looking for some takes longer than the parsing (6.0 s with
    the collector, 2.5 s without)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _help_topics() -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        text = topics[name].strip()
        if len(text) >= _MIN_DOCUMENT_CHARS:
            yield Document(text, f"help:{name}", "help")


def _docstrings(stdlib: Path) -> Iterator[Document]:
    seen: set[str] = set()
    for path in sorted(stdlib.rglob("*.py"), key=lambda path: path.relative_to(stdlib).parts):
        parts = path.relative_to(stdlib).with_suffix("").parts
        if not _SKIPPED_FOLDERS.isdisjoint(parts) or parts[0].startswith(("config-", "_sysconfigdata")):
            continue
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tree = _parse(path)
        if tree is None:
            continue
        domain = _DOMAIN.get(parts[0], "other")
        own, classes = _sections(tree, seen)
        for name, text in [("", own), *classes]:
            if len(text) >= _MIN_DOCUMENT_CHARS:
                yield Document(text, f"doc:{module}#{name}" if name else f"doc:{module}", domain)


def _parse(path: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated escapes in files that are not ours
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # some distributions ship templates and deliberately broken files as .py
        return None


def _sections(tree: ast.Module, seen: set[str]) -> tuple[str, list[tuple[str, str]]]:
    """The module's own text, and (name, text) of each class large enough for a document of its own."""
    own: list[str] = []
    classes: list[tuple[str, str]] = []
    _add(own, tree, "", seen)
    for node in _definitions(tree):
        texts: list[str] = []
        _collect(texts, node, node.name, seen)
        text = "\n\n".join(texts)
        if isinstance(node, ast.ClassDef) and len(text) >= _OWN_DOCUMENT_CHARS:
            classes.append((node.name, text))
        elif text:
            own.append(text)
    return "\n\n".join(own), classes


_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(node: ast.AST) -> Iterator[_Definition]:
    """Classes and functions of a body, those under ``if`` and ``try`` included, in the order of the source."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            yield child
        elif isinstance(child, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from _definitions(child)


def _collect(texts: list[str], node: _Definition, name: str, seen: set[str]) -> None:
    _add(texts, node, name, seen)
    if isinstance(node, ast.ClassDef):
        for child in _definitions(node):
            _collect(texts, child, f"{name}.{child.name}", seen)


def _add(texts: list[str], node: ast.Module | _Definition, name: str, seen: set[str]) -> None:
    docstring = ast.get_docstring(node)
    if not docstring or docstring in seen:
        return
    seen.add(docstring)
    if isinstance(node, ast.Module):
        texts.append(docstring)
    elif isinstance(node, ast.ClassDef):
        texts.append(f"class {name}:\n{docstring}")
    else:
        texts.append(f"{name}({ast.unparse(node.args)})\n{docstring}")
