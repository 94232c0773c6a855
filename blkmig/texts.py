# SPDX-License-Identifier: GPL-2.0-or-later
"""Texts that come from elsewhere, a stream or another host: what of them may be shown, and how much may be sent."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` with what is not to be printed escaped: a name in a stream may hold commands for the terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else escape(char) for char in text)


def escape(char: str) -> str:
    """Return a character as Python writes it; a line's end becomes a space."""
    return " " if char in "\r\n" else char.encode("unicode_escape", "backslashreplace").decode("ascii")


def cut(text: str, most: int) -> bytes:
    """Return `text` as UTF-8, `most` bytes at most, and no half character."""
    whole = text.encode("utf-8", "backslashreplace")
    return whole if len(whole) <= most else whole[:most].decode("utf-8", "ignore").encode()
