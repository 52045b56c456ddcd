"""The house's one structural rule: wire <- core <- net <- py <- python/pgpoll, and no arrow points the other way.

An include of a layer is an arrow to it; so is a system header that a layer must not know (no descriptor in core, no
Python below py). In Python only _loop.py knows asyncio, and nothing imports it before it is needed.
"""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYERS = ["wire", "core", "net", "py"]
PACKAGE = ROOT / "python" / "pgpoll"

SOCKETS = r"sys/socket|sys/un|netinet/.*|arpa/.*|netdb|poll|sys/epoll|unistd|fcntl"
PYTHON = r"Python|pybind11/.*"
PRINTING_AND_CLOCK = r"iostream|cstdio|stdio|print|chrono|ctime|time|sys/time|thread|mutex|future"
FORBIDDEN_SYSTEM_HEADERS = {
    "wire": f"{SOCKETS}|{PYTHON}|{PRINTING_AND_CLOCK}|openssl/.*",
    "core": f"{SOCKETS}|{PYTHON}|{PRINTING_AND_CLOCK}|cerrno|errno",
    "net": f"{PYTHON}|thread|mutex|future|netdb",
    "py": "thread|future|netdb",
}
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / "src" / layer).rglob("*.[ch]pp"))
MODULES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT / "src").parts[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_includes_point_downwards(path: pathlib.Path) -> None:
    layer = layer_of(path)
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    for line in path.read_text().splitlines():
        if match := re.match(r'\s*#\s*include\s*"([^"]+)"', line):
            included = match[1]
            assert ".." not in included, f"relative include: {line}"
            assert included.split("/")[0] in allowed, f"{layer} must not know: {line}"
        elif match := re.match(r"\s*#\s*include\s*<([^>]+)>", line):
            name = match[1].removesuffix(".h")
            assert not re.fullmatch(FORBIDDEN_SYSTEM_HEADERS[layer], name), f"{layer} must not know: {line}"


def test_links_point_downwards() -> None:
    for layer in LAYERS:
        build = (ROOT / "src" / layer / "CMakeLists.txt").read_text()
        linked = set(re.findall(r"pgpoll_(wire|core|net)\b", build))
        assert linked <= set(LAYERS[: LAYERS.index(layer)]), f"{layer} links {linked}"


def imports_of(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_only_loop_imports_asyncio(path: pathlib.Path) -> None:
    assert path.name == "_loop.py" or not imports_of(path) & {"asyncio", "uvloop"}


@pytest.mark.parametrize("statement", ["import pgpoll", "import pgpoll; pgpoll.sync.connect; pgpoll.core.Connection"])
def test_asyncio_is_not_imported_unasked(statement: str) -> None:
    program = f"import sys; {statement}; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
