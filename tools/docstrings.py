# SPDX-License-Identifier: GPL-2.0-or-later
"""Show the package's docstrings as Markdown: an extension of griffe, which reads them for the documentation.

The docstrings are written for ``help()`` and for readers of the code, with the roles of Python's own documentation. A
role becomes a link where the site describes what it names, and plain code elsewhere. What is compiled has its types in
a ``.pyi`` and its docstrings in the extension, so these are taken from there.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`(~?)([^`]+)`")
LITERAL_BLOCK = re.compile(r"::[ \t]*$", re.MULTILINE)


def as_markdown(text: str) -> str:
    """Return a docstring with roles as links, and without the second colon that announces a block of literal text."""
    return LITERAL_BLOCK.sub(_announcement, ROLE.sub(_link, text))


def _announcement(match: re.Match[str]) -> str:
    is_alone = not match.string[: match.start()].rpartition("\n")[2].strip()
    return "" if is_alone else ":"


def _link(match: re.Match[str]) -> str:
    is_short, target = match.groups()
    target = target.lstrip(".")
    shown = target.rpartition(".")[2] if is_short else target
    return f'<autoref optional identifier="{target}"><code>{shown}</code></autoref>'


class Docstrings(griffe.Extension):
    """Rewrites every docstring when the whole package is loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite all docstrings of the package."""
        self._rewrite(pkg)

    def _rewrite(self, obj: griffe.Object) -> None:
        if obj.docstring is None and str(obj.filepath).endswith(".pyi"):
            obj.docstring = _compiled_docstring(obj)
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
        for member in obj.members.values():
            if isinstance(member, griffe.Object):
                self._rewrite(member)


def _compiled_docstring(obj: griffe.Object) -> griffe.Docstring | None:
    """Return what the extension says of `obj`; a constant has nothing to say but what its type says."""
    found: Any = importlib.import_module(obj.module.path)
    for name in obj.path.removeprefix(obj.module.path).split(".")[1:]:
        found = getattr(found, name, None)
    if obj.is_attribute and not inspect.isdatadescriptor(found):
        return None
    text = getattr(found, "__doc__", None)
    return griffe.Docstring(inspect.cleandoc(text), parent=obj) if text else None
