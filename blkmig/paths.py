# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths that callers hand over, alone or with options behind them. They are looked at before anything is opened."""

from __future__ import annotations

import os

from . import errors

COMMA_TWICE = "write a comma in a value twice"


def check(what: str, path: object) -> str:
    """Return the text of `path`, which messages call `what`.

    Raises :class:`~blkmig.errors.WrongType` for what is no path, and :class:`~blkmig.errors.ParameterError` for what
    no file of this machine can be called.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise errors.WrongType(f"{what} must be a path, not {path!r}")
    why = why_no_name(text)
    if why:
        raise errors.ParameterError(f"{what} must be a path, and {text!r} {why}")
    return text


def why_no_name(text: str) -> str:
    """Say why no file of this machine can have a name with this text in it; "" if one can."""
    if "\0" in text:
        return "holds a NUL character"
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        return f"cannot be said in bytes here: {error.reason}"
    return ""


def split(text: str) -> list[str]:
    """Return what stands between the commas of `text`, as QEMU takes options apart: two commas mean one, and no end.

    Raises :class:`~blkmig.errors.ParameterError` for what no path, and so no text with one, can hold.
    """
    why = why_no_name(text)
    if why:
        raise errors.ParameterError(f"{text!r} {why}")
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
