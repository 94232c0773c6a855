# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of a stream that is being loaded, and the way back to its source that one of them opens.

What must be answered is answered, the rest is skipped by its length.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from .. import errors
from . import bundles, container, digestwords, results, return_path, sessions, stream, words

if TYPE_CHECKING:
    from ..channel import InputQEMUFile, OutputQEMUFile

Answer = int | words.Hello | words.Alive
"""What a PING is answered with: a PONG of this value, or a word."""

MAX_COMMANDS: Final = 64
"""Commands that are counted one by one; QEMU knows a dozen."""


class Commands:
    """The commands that come in `f`. A package is not read here: its records are the loader's.

    A PING is answered with its own value, but for those of `answers`, which are questions.
    """

    def __init__(
        self, f: InputQEMUFile, observer: stream.StreamObserver, answers: Mapping[int, Answer]
    ) -> None:
        self._f = f
        self._answers = answers
        self._observer = observer
        self._counts: dict[str, int] = {}
        self.on_bundle: Callable[[bundles.Bundle, int], None] | None = None
        """Called with a BUNDLE and its position, where it was offered."""

        self._return_path: OutputQEMUFile | None = None  # while the source waits for `finish`
        self._told: OutputQEMUFile | None = None  # the same, afterwards
        self._has_said_hello = False
        self._has_said_alive = False
        # Held by whoever says something: besides the loading thread, those that say what it does meanwhile.
        self._lock = threading.Lock()

    def get(self, position: int, *, in_package: bool) -> int | None:
        """Read the rest of the command at `position`; return how long the package is that follows, if it is one."""
        f = self._f
        command, nbytes = f.get_be16(), f.get_be16()
        container.check_command(command, nbytes, position)
        self._count(command)
        self._observer.command(command, nbytes, position)
        if command == container.MIG_CMD_PACKAGED:
            if in_package:
                raise errors.StreamError("a package inside a package", position=position)
            return f.get_be32()
        if command == container.MIG_CMD_OPEN_RETURN_PATH:
            self._return_path = f.return_path()
        elif command == bundles.MIG_CMD_BUNDLE:
            if self.on_bundle is None or in_package:
                raise errors.StreamError("a BUNDLE of connections, which nobody has offered", position=position)
            self.on_bundle(bundles.parse_bundle(f.get_buffer(nbytes), position), position)
        elif command == container.MIG_CMD_PING:
            value = f.get_be32()
            if self._return_path is not None:
                self._answer(self._return_path, self._answers.get(value, value))
        else:
            f.skip(nbytes, is_payload=False)
        return None

    def _answer(self, f: OutputQEMUFile, answer: Answer) -> None:
        with self._lock:
            if isinstance(answer, words.Hello):
                self._has_said_hello = True
                return_path.send_message(f, words.MIG_RP_MSG_HELLO, answer.encode())
            elif isinstance(answer, words.Alive):
                self._has_said_alive = True
                return_path.send_message(f, words.MIG_RP_MSG_ALIVE, answer.encode())
            else:
                return_path.send_pong(f, answer)

    def _count(self, command: int) -> None:
        """Count a command; of very many kinds, the later ones are counted together."""
        name = container.COMMAND_NAMES.get(command, str(command))
        if name not in self._counts and len(self._counts) >= MAX_COMMANDS:
            name = "others"
        self._counts[name] = self._counts.get(name, 0) + 1

    def by_name(self) -> dict[str, int]:
        """Return how often each command came, by the command's name."""
        return dict(self._counts)

    # -- the way back: see LoadVM ------------------------------------------------------------------------------------

    @property
    def is_awaited(self) -> bool:
        """Whether the source waits for `finish`."""
        return self._return_path is not None

    def beat(self, value: int, text: str = "") -> None:
        """Send a sign of life, unless the link is full, or somebody says something else: ALIVE with `text` to who has
        asked for it, else PONG. From any thread."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            f = self._return_path
            if f is None or not f.is_writable():
                return
            if self._has_said_alive:
                return_path.send_message(f, words.MIG_RP_MSG_ALIVE, words.Alive(text).encode())
            else:
                return_path.send_pong(f, value % (1 << 32))
        finally:
            self._lock.release()

    def reply(self, refusals: Sequence[words.Refusal]) -> None:
        """Tell a source that waits for it which disks of its table are refused; none: all are taken."""
        self._say(words.MIG_RP_MSG_REPLY, words.Reply(tuple(refusals)).encode())

    def ready(self, number: int) -> None:
        """Tell a source that waits for it that everything before its FLUSH `number` is on stable storage."""
        self._say(words.MIG_RP_MSG_READY, struct.pack(">I", number))

    def done(self, number: int, nameless: Sequence[words.Refusal]) -> None:
        """Tell the source that the disks are ours by its COMMIT `number`, and which of them have no names yet."""
        self._say(words.MIG_RP_MSG_DONE, words.Done(number, tuple(nameless)).encode())

    def proof_result(self, result: results.ProofResult) -> None:
        """Tell a source how far the comparison of its proofs is, also after `finish`. Blocks."""
        with self._lock:
            f = self._return_path or self._told
            if f is not None and self._has_said_hello:
                return_path.send_message(f, results.MIG_RP_MSG_PROOF_RESULT, result.encode())

    def go_on(self, f: InputQEMUFile) -> None:
        """Read from `f` from now on, and answer there: the link before it was lost."""
        with self._lock:
            self._f, self._return_path = f, f.return_path()

    def drop(self, f: InputQEMUFile) -> None:
        """Close a link that was lost, in both directions, when nobody is saying anything on it.

        Otherwise what another thread says could get into whatever has its descriptor next. End the link before, or
        this waits as long as such a thread does.
        """
        with self._lock:
            f.abort()

    def ack(self, number: int) -> None:
        """Tell the source that what came before its BARRIER `number` is on stable storage. From any thread."""
        self._say(words.MIG_RP_MSG_ACK, struct.pack(">I", number))

    def answer_session(self, answer: sessions.SessionAnswer) -> None:
        """Tell the source what becomes of its session."""
        self._say(words.MIG_RP_MSG_SESSION, answer.encode())

    def bundled(self, word: bundles.Bundled) -> None:
        """Tell the source how far its BUNDLE is."""
        kind = bundles.MIG_RP_MSG_BUNDLE_READY if word.is_ready else bundles.MIG_RP_MSG_BUNDLED
        self._say(kind, word.encode())

    def digest(self, answer: digestwords.Digest) -> None:
        """Answer an ASK of a source that waits for it. From any thread."""
        self._say(digestwords.MIG_RP_MSG_DIGEST, answer.encode())

    def _say(self, kind: int, data: bytes) -> None:
        """Say a word of blkmig's, to a source that knows them."""
        with self._lock:
            if self._return_path is not None and self._has_said_hello:
                return_path.send_message(self._return_path, kind, data)

    def finish(self, status: int, failure: words.Failure | None = None) -> None:
        """Tell the source how loading ended, once."""
        if failure is not None:
            self._say(words.MIG_RP_MSG_ERROR, failure.encode())
        with self._lock:
            f, self._return_path = self._return_path, None
            if f is not None:
                return_path.send_shut(f, status)
                self._told = f
                if status:
                    f.close()

    def wait_until_told(self) -> None:
        """Return when the source's machine has what `finish` said; raises ChannelError if the link broke before."""
        if self._told is not None:
            self._told.wait_until_taken()
