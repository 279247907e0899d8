"""Standard library -> documents: its docstrings with their qualified names, the best-known API first.

The .py files are read with `ast`, nothing is imported; only what is written in C (`str.strip`, `time.strptime`)
comes from importing the few modules of `WRITTEN_IN_C`. The order depends on nothing but the installed Python,
so the first N documents are always the same ones.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple


class Document(NamedTuple):
    """One docstring: `name` is how a user writes it (`datetime.datetime.strptime`)."""

    name: str
    docstring: str

    @property
    def opening(self) -> str:
        """The first paragraph on one line, without the signature that C docstrings start with."""
        leaf = re.escape(self.name.rpartition(".")[2])
        text = re.sub(rf"\A\s*(?:\w+\.)*{leaf}\(.*\n", "", self.docstring).strip() or self.docstring
        return " ".join(re.split(r"\n\s*\n", text)[0].split())


# Names whose members the first documents come from, most useful first. A class listed here is a group of its own.
WELL_KNOWN = """
builtins datetime datetime.datetime datetime.date str pathlib.Path os shutil os.path json re subprocess
random math collections itertools functools csv time list dict tempfile glob statistics zipfile gzip
textwrap urllib.request urllib.parse threading logging argparse base64 hashlib sqlite3 copy string secrets
uuid heapq bisect timeit getpass fnmatch shlex calendar smtplib email pickle tarfile bz2 lzma zlib
dataclasses contextlib queue concurrent.futures asyncio socket http.client http.server set zoneinfo decimal
fractions difflib configparser tomllib html html.parser xml.etree.ElementTree webbrowser struct
datetime.timedelta enum typing operator inspect traceback ssl unittest pprint multiprocessing signal sys io
int float bytes collections.Counter collections.deque collections.OrderedDict ipaddress locale platform
types weakref warnings abc ast cProfile pstats tracemalloc mimetypes fileinput linecache filecmp
socketserver ftplib imaplib poplib xmlrpc.client array codecs unicodedata selectors sched numbers graphlib
shelve dbm plistlib gettext keyword token tokenize dis
"""
GROUP_SHARE = 24  # documents a group may place before every other group had its turn

WRITTEN_IN_C = """
builtins math time datetime itertools collections functools os sys random csv struct zlib socket sqlite3 io
decimal array unicodedata gc cmath hashlib
"""

# Where the source of a module goes by another name than the module.
SOURCE_OF = {
    "posixpath": "os.path",
    "genericpath": "os.path",
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
}

SKIPPED = """
test tests idlelib lib2to3 distutils ensurepip turtledemo encodings site-packages dist-packages pydoc_data
ntpath nturl2path msilib __phello__ __hello__ antigravity this asynchat asyncore binhex smtpd imp cgi cgitb
chunk crypt imghdr mailcap nntplib pipes sndhdr telnetlib uu xdrlib aifc audioop sunau pdb bdb pydoc turtle
pickletools opcode site venv tkinter
"""


def documents(limit: int | None = None) -> list[Document]:
    """The public docstrings of the running Python's standard library, the most useful `limit` of them.

    A name appears once, and so does a text: of two names for one thing the more useful one stays.
    """
    found: dict[str, Document] = {}
    for document in (*imported_documents(), *source_documents()):
        if len(document.docstring.split()) >= 4 and "deprecated" not in document.docstring[:200].lower():
            found.setdefault(document.name, document)
    texts: dict[str, Document] = {}
    for document in ranked(found.values()):
        texts.setdefault(" ".join(document.docstring.split()), document)
    return list(texts.values())[:limit]


def ranked(found: Iterable[Document]) -> list[Document]:
    """Documents in order of use: groups take turns in the order of WELL_KNOWN, GROUP_SHARE documents a turn."""
    order = {name: rank for rank, name in enumerate(WELL_KNOWN.split())}
    groups: dict[int, list[Document]] = {}
    for document in found:
        groups.setdefault(group_of(document.name, order), []).append(document)
    keyed = []
    calls = call_counts()
    for rank, members in groups.items():
        members.sort(key=lambda document: usefulness(document, calls))  # stable: ties stay in source order
        keyed += [(place // GROUP_SHARE, rank, place, document) for place, document in enumerate(members)]
    return [document for *_, document in sorted(keyed)]


def group_of(name: str, order: dict[str, int]) -> int:
    """Rank of the longest listed prefix of `name`; builtins are written without their module."""
    prefix = name
    while prefix:
        if prefix in order and prefix != "builtins":
            return order[prefix]
        prefix = prefix.rpartition(".")[0]
    return len(order) if "." in name else order["builtins"]


def usefulness(document: Document, calls: Counter[str]) -> tuple[int, bool, int]:
    """Sort key in a group: outer names first, exceptions last, what the library itself calls most before the rest."""
    leaf = document.name.rpartition(".")[2]
    return document.name.count("."), leaf.endswith(("Error", "Exception", "Warning")), -calls[leaf]


def call_counts() -> Counter[str]:
    """How often the standard library's sources call each name: `os.listdir(...)` counts for `listdir`."""
    calls: Counter[str] = Counter()
    for _, path in source_files():
        calls.update(name.decode() for name in re.findall(rb"(?<!def )\b([A-Za-z][A-Za-z0-9_]*)\(", path.read_bytes()))
    return calls


def source_files() -> Iterator[tuple[str, Path]]:
    """(module, path) of every .py file below the standard library's folder that is not SKIPPED, in path order."""
    root, skipped = Path(sysconfig.get_path("stdlib")), set(SKIPPED.split())
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if skipped.isdisjoint(parts):
            yield ".".join(part for part in parts if part != "__init__"), path


def source_documents() -> Iterator[Document]:
    """Docstrings out of the .py files, under the name their package exports them by."""
    for module, path in source_files():
        public_name = SOURCE_OF.get(module, module)
        package = module.rpartition(".")[0]
        try:
            exported = set() if private(package) else exports(path)
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # a template, or Python 2, among the sources
        if private(public_name) and not exported:
            continue
        for name, docstring in tree_docstrings(tree):
            top = name.partition(".")[0]
            if top in exported:
                yield Document(f"{package}.{name}", docstring)
            elif not private(public_name):
                yield Document(f"{public_name}.{name}" if name else public_name, docstring)


def tree_docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name inside the module, docstring) of a module, its public functions, classes and their methods."""
    listed = public_names(tree)

    def walk(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, str]]:
        for child in node.body:
            if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or private(child.name):
                continue
            if listed is not None and not prefix and child.name not in listed:
                continue
            name = f"{prefix}{child.name}"
            if docstring := ast.get_docstring(child):
                yield name, docstring
            if isinstance(child, ast.ClassDef):
                yield from walk(child, f"{name}.")

    if docstring := ast.get_docstring(tree):
        yield "", docstring
    yield from walk(tree, "")


def public_names(tree: ast.Module) -> set[str] | None:
    """The strings in `__all__ = [...]` and `__all__ += [...]`; None where the module lists none."""
    names: set[str] | None = None
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "__all__":
            names = (names or set()) | {
                leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
            }
    return names


def exports(path: Path) -> set[str]:
    """What the package's `__init__` takes over from the module at `path`: `json` exports `JSONDecoder`."""
    init = path.parent / "__init__.py"
    if path.name == "__init__.py" or not init.exists():
        return set()
    names: set[str] = set()
    for node in ast.walk(ast.parse(init.read_bytes())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").rpartition(".")[2] == path.stem:
            names |= {alias.name for alias in node.names}
    if "*" in names:
        tree = ast.parse(path.read_bytes())
        names |= public_names(tree) or {child.name for child in tree.body if hasattr(child, "name")}
    return {name for name in names if not private(name)}


def imported_documents() -> Iterator[Document]:
    """Docstrings of what has no .py source: the C functions and classes of WRITTEN_IN_C, with their methods."""
    for module_name in WRITTEN_IN_C.split():
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue  # a Python built without it, as sqlite3 often is
        prefix = "" if module_name == "builtins" else f"{module_name}."
        homes = {module_name, f"_{module_name}", "posix", "nt", None}
        for name, member in sorted(vars(module).items()):
            if private(name) or getattr(member, "__module__", "") not in homes or is_exception(member):
                continue
            members = {name: member}
            if inspect.isclass(member):
                methods = sorted(vars(member).items())
                members |= {f"{name}.{method}": value for method, value in methods if not private(method)}
            for path, value in members.items():
                if (inspect.isclass(value) or inspect.isroutine(value)) and (text := inspect.getdoc(value)):
                    yield Document(f"{prefix}{path}", text)


def is_exception(member: object) -> bool:
    return inspect.isclass(member) and issubclass(member, BaseException)


def private(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))
