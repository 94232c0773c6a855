# SPDX-License-Identifier: GPL-2.0-or-later
"""What the owner of a live section provides: QEMU's SaveVMHandlers as a class.

The order of calls, both sides (a handler that is not active is left out of all of them but the cleanups)::

    saving    save_setup ─ setup_parts ─ { save_live_pending, save_live_iterate, iterate_parts }*
              ─ save_live_complete_precopy ─ save_cleanup
    loading   load_setup ─ { load_start, load_state* } ─ load_cleanup

Each call between the two ends writes or reads exactly one section's payload; the section's header and footer belong
to :mod:`.savestate` and :mod:`.load`. The cleanups run once, whatever happened before, also when setup never did.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..channel import InputQEMUFile, OutputQEMUFile


class SaveVMHandlers:
    """A live section's handlers; every method does nothing until overridden."""

    def is_active(self) -> bool:
        """Tell whether the section takes part in this migration's saving side."""
        return True

    def save_setup(self, f: OutputQEMUFile) -> None:
        """Write the START payload and prepare for iterating; on failure undo in `save_cleanup`."""

    def setup_parts(self) -> Iterable[bytes]:
        """Return what is to follow START at once: the payload of a PART each."""
        return ()

    def save_live_iterate(self, f: OutputQEMUFile) -> int:
        """Write one PART payload; return 1 if nothing more is to send for now, 0 if there is, -errno on failure."""
        return 1

    def iterate_parts(self) -> Iterable[bytes]:
        """Return what is to follow the PART that was just written: the payload of a PART each."""
        return ()

    def save_live_pending(self) -> int:
        """Return how many bytes would be left to send if the writers stopped now. Does not block."""
        return 0

    def save_live_complete_precopy(self, f: OutputQEMUFile) -> None:
        """Write the END payload: everything that is left. Writers are held meanwhile."""

    def save_cleanup(self) -> None:
        """Release what the saving side holds; after success, failure and cancel alike."""

    def load_setup(self) -> None:
        """Prepare for `load_state`; called once, before the first section is read."""

    def load_start(self, idstr: str, position: int) -> None:
        """Take note that the section starts under this name, at `position`; some handlers have more than one name."""

    def load_state(self, f: InputQEMUFile, version_id: int) -> None:
        """Read one section's payload exactly to its end; START, PART, END and FULL look the same to the handler.

        Raises :class:`~blkmig.errors.StreamError` for what the payload must not hold. A payload that stops where
        :func:`~blkmig.savevm.looks_like_footer` says so was closed early by a source that could not read.
        """

    def load_cleanup(self) -> None:
        """Release what the loading side holds; after success and failure alike."""
