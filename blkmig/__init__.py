# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's live block migration outside QEMU: disks move while they are being written.

::

    disk = blkmig.FileBackend("vda.raw", name="drive0")
    with blkmig.outgoing([disk], "tcp:dest:4444") as mig:          # save_setup ... save_cleanup
        while mig.pending() > mig.threshold_size():                # bulk phase, then dirty rounds
            mig.iterate()                                          # one section: save_live_iterate
        mig.complete()                                             # hold writers, last pass, end of stream

    blkmig.send([disk], "tcp:dest:4444", downtime_limit=0.3)       # the same in one call
    blkmig.receive("tcp::4444", {"drive0": "copy.raw"})            # the other end

Importing it costs next to nothing: each name, and each room (``blkmig.disk`` ...), is loaded when it is first used.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # `typing` alone would take longer to import than all of this
if TYPE_CHECKING:
    from . import errors
    from .aio import areceive, asend
    from .credentials import TlsParameters
    from .disk import BlockBackend, DirtyBitmap
    from .errors import MigrationError
    from .files import FileBackend, MemoryBackend
    from .migration import IncomingMigration, OutgoingMigration, receive, send
    from .migration.calls import incoming, outgoing
    from .params import IncomingParameters, MigrationParameters
    from .savevm import SaveVMHandlers
    from .sources import open_disk, open_disks
    from .stats import IncomingStatistics, OutgoingStatistics

__all__ = [
    "BlockBackend",
    "DirtyBitmap",
    "FileBackend",
    "IncomingMigration",
    "IncomingParameters",
    "IncomingStatistics",
    "MemoryBackend",
    "MigrationError",
    "MigrationParameters",
    "OutgoingMigration",
    "OutgoingStatistics",
    "SaveVMHandlers",
    "TlsParameters",
    "areceive",
    "asend",
    "errors",
    "incoming",
    "open_disk",
    "open_disks",
    "outgoing",
    "receive",
    "send",
]

_ROOMS = {
    "aio": ("areceive", "asend"),
    "credentials": ("TlsParameters",),
    "disk": ("BlockBackend", "DirtyBitmap"),
    "errors": ("MigrationError",),
    "migration": ("IncomingMigration", "OutgoingMigration", "incoming", "outgoing", "receive", "send"),
    "params": ("IncomingParameters", "MigrationParameters"),
    "savevm": ("SaveVMHandlers",),
    "stats": ("IncomingStatistics", "OutgoingStatistics"),
    "files": ("FileBackend", "MemoryBackend"),
    "sources": ("open_disk", "open_disks"),
    "block": (),
    "channel": (),
    "metrics": (),
    "report": (),
    "testing": (),
    "nbd": (),
    "qemu": (),
    "units": (),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> object:
    """Load what is asked for, once: from then on it is an attribute like any other."""
    if name not in _ROOM_OF and name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = importlib.import_module(f"{__name__}.{_ROOM_OF.get(name, name)}")
    value: object = module if name in _ROOMS else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
