# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes through a pipe is taken whole, and nobody is waited for without a bound."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from blkmig import errors, pipes


def test_all_that_is_written_until_it_is_closed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    def write() -> None:
        with (tmp_path / "pipe").open("wb", buffering=0) as pipe:
            for _ in range(100):
                pipe.write(b"x" * 1000)

    writer = threading.Thread(target=write)
    writer.start()
    with pipes.in_a_file(str(tmp_path / "pipe"), about="it") as path:
        assert path != str(tmp_path / "pipe")
        assert Path(path).read_bytes() == b"x" * 100_000
        assert Path(path).read_bytes() == b"x" * 100_000
    writer.join()


def test_a_file_is_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pipes.in_a_file(str(tmp_path / "file"), about="it") as path:
        assert path == str(tmp_path / "file")


@pytest.mark.parametrize("begins", [b"", b"half"])
def test_nobody_is_waited_for_without_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: bytes) -> None:
    monkeypatch.setattr(pipes, "SECONDS", 0.01)
    os.mkfifo(tmp_path / "pipe")
    fd = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        os.write(fd, begins)
        with pytest.raises(errors.ParameterError, match=r"it: cannot read .*pipe': nobody has written all of it"):
            with pipes.in_a_file(str(tmp_path / "pipe"), about="it"):
                pass
    finally:
        os.close(fd)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(errors.ParameterError, match=r"it: cannot read .*No such file"):
        with pipes.in_a_file(str(tmp_path / "none"), about="it"):
            pass
