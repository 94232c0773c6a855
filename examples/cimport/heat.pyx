# SPDX-License-Identifier: GPL-2.0-or-later
# cython: language_level=3
"""How much of each part of a disk is dirty: a loop over a blkmig bitmap, in C and without the GIL.

    python setup.py build_ext --inplace
    python -c "import heat; help(heat)"

What stands in ``blkmig/_core.pxd`` is the contract. A `Bitmap` is 64-bit words; `test_bit` reads one, atomically, so
writers may mark meanwhile.
"""

from libc.stdint cimport uint8_t, uint64_t
cimport blkmig._core as core
from blkmig._core cimport Bitmap


def heat(Bitmap bitmap, Py_ssize_t parts) -> list[float]:
    """Return for each of so many equal parts of `bitmap` which share of its bits is set, from 0 to 1."""
    if parts < 1:
        raise ValueError("a disk has one part at least")
    cdef uint64_t first, last, bit, count
    cdef Py_ssize_t part
    shares = []
    for part in range(parts):
        first, last = bitmap.size * part // parts, bitmap.size * (part + 1) // parts
        count = 0
        with nogil:
            for bit in range(first, last):
                count += core.test_bit(bitmap, bit)
        shares.append(count / (last - first) if last > first else 0.0)
    return shares


def zero_blocks(const uint8_t[::1] data) -> list[bool]:
    """Return for each whole block of 1 MiB in `data` whether it is zero: the vector loop that a migration uses."""
    cdef Py_ssize_t count = data.shape[0] // core.BLOCK_SIZE, block
    cdef bint found
    zeros = []
    for block in range(count):
        with nogil:
            found = core.buffer_is_zero_c(&data[block * core.BLOCK_SIZE], core.BLOCK_SIZE)
        zeros.append(found)
    return zeros
