# SPDX-License-Identifier: GPL-2.0-or-later
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""The verbs: is it zero, bitmaps, big-endian framing, block buffers, block I/O. Knows no policy.

Data crosses this border by the block or by the run, metadata by the run, bits and bytes never in a loop.
Buffers are anything C-contiguous. System calls run without the GIL, go on after EINTR (running Python's signal
handlers) and after short counts, and raise OSError with the errno. Numbers are whatever operator.index() takes: a float
is a TypeError. Classes that hold a position or a payload (BlockBuffer, OutputBuffer, InputBuffer) belong to one thread
at a time; Bitmap and Mapping may be shared.
"""

import os

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_CheckExact, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport ECHILD, EINVAL
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ._headers cimport *            # which has what is used here, and nothing else


cdef enum:
    LINE = 64                       # of the cache: a vector that straddles two costs twice
    HEADER_MAX = 8 + 1 + 255        # word, length byte, name
    FLAGS = SECTOR_SIZE - 1         # of a record's word

globals().update(
    BLOCK_SIZE=BLOCK_SIZE, SECTOR_SIZE=SECTOR_SIZE, SECTOR_BITS=SECTOR_BITS, SECTORS_PER_BLOCK=SECTORS_PER_BLOCK,
    FLAG_DEVICE_BLOCK=FLAG_DEVICE_BLOCK, FLAG_EOS=FLAG_EOS, FLAG_PROGRESS=FLAG_PROGRESS, FLAG_ZERO_BLOCK=FLAG_ZERO_BLOCK,
)


fork_watch()


# ---- zero detection ----

cdef bint buffer_is_zero_c(const void* buffer, size_t n) noexcept nogil:
    return zero_run(zero_chosen, buffer, n)


cdef zero_kernel_fn find_zero_kernel(str name) except NULL:
    cdef int i
    for i in range(zero_kernels_built_count):
        if zero_kernels_built[i].name.decode() == name:
            if zero_kernels_built[i].fn == NULL:
                raise ValueError(f"this CPU cannot run the zero kernel {name!r}: use one of {', '.join(zero_kernels)}")
            return zero_kernels_built[i].fn
    raise ValueError(f"no zero kernel is called {name!r}: use one of {', '.join(zero_kernels)}")


zero_detect()
zero_kernels = tuple(
    [zero_kernels_built[i].name.decode() for i in range(zero_kernels_built_count) if zero_kernels_built[i].fn != NULL]
)
zero_kernel = os.environ.get("BLKMIG_ZERO_KERNEL") or zero_kernels[len(zero_kernels) - 1]
try:
    zero_chosen = find_zero_kernel(zero_kernel)
except ValueError as error:
    raise ImportError(f"BLKMIG_ZERO_KERNEL={zero_kernel}: {error}") from None


cdef bint scan_buffer(zero_kernel_fn kernel, buffer) except -1:
    cdef Py_buffer view
    cdef bint zero
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    zero = zero_scan(kernel, view.buf, view.len)
    PyBuffer_Release(&view)
    return zero


def buffer_is_zero(buffer, /):
    """Tell whether every byte of `buffer` is 0; an empty buffer is.

    Any contiguous buffer of any length and alignment. Stops at the first 512 bytes that are not zero; drops the GIL
    from 512 KiB on.
    """
    if PyBytes_CheckExact(buffer):
        return zero_scan(zero_chosen, PyBytes_AS_STRING(buffer), PyBytes_GET_SIZE(buffer))
    if PyByteArray_CheckExact(buffer) and PyByteArray_GET_SIZE(buffer) < GIL_NBYTES:
        return zero_run(zero_chosen, PyByteArray_AS_STRING(buffer), PyByteArray_GET_SIZE(buffer))
    return scan_buffer(zero_chosen, buffer)


def buffer_is_zero_using(str kernel not None, buffer, /):
    """Do what buffer_is_zero does, with one of `zero_kernels`; ValueError for one that this CPU cannot run."""
    return scan_buffer(find_zero_kernel(kernel), buffer)


# ---- bitmap ----

@cython.final
cdef class Bitmap:
    """`nbits` bits in unsigned-long words, all clear at first; the bits behind the last are always 0.

    set, clear, take, the ranges, take_areas, merge and take_into may run in any threads at once: each changes a word in
    one atomic step. Searches and counts see every bit that was set before they began and not taken meanwhile.

    The buffer protocol gives the words themselves (format "L", writable, no copy); writers through it must leave the
    bits behind the last at 0, and their plain stores race with the methods as any memory does.

    Above the words stands a summary, one byte for 512 words, so that a search passes over empty regions:

        0  every word is 0            setters: word, then "if the byte is not 1: make it 1"
        1  some word may not be 0     searches: words all 0?  1 -> 2, look again, 2 -> 0 (or back to 1)
        2  being looked at again      only 0 is passed over, and only one thread at a time lowers bytes

    A setter that comes between the second look and 2 -> 0 has made the byte 1, so that the step fails: a bit that is
    set is never behind a 0. While a view of the words is alive searches ignore the summary, and the first one
    after the last view is gone builds it again.
    """

    def __cinit__(self, Py_ssize_t nbits, /):
        if nbits < 0:
            raise ValueError(f"a bitmap cannot have {nbits} bits")
        self.size = nbits
        self.nwords = (self.size + WORD_BITS - 1) >> WORD_SHIFT
        self.memory = calloc(self.nwords + LINE // sizeof(unsigned long), sizeof(unsigned long))
        self.words = <unsigned long*>((<size_t>self.memory + LINE - 1) & ~<size_t>(LINE - 1))
        self.summary = <uint8_t*>calloc(((self.nwords // <size_t>GROUP_WORDS) | 7) + 1, 1)
        if self.memory == NULL or self.summary == NULL:
            raise MemoryError(f"no memory for a bitmap of {nbits} bits")

    def __dealloc__(self):
        free(self.memory)
        free(self.summary)

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.words, self.nwords * sizeof(unsigned long), 0, flags)
        view.itemsize = sizeof(unsigned long)
        if view.format != NULL:
            view.format = <char*>b"L"
        if view.shape != NULL:
            view.shape = <Py_ssize_t*>&self.nwords
        self.exports += 1
        self.stale = True

    def __releasebuffer__(self, Py_buffer* view):
        self.exports -= 1

    @property
    def nbytes(self):
        """Bytes of the words."""
        return self.nwords * sizeof(unsigned long)

    def set(self, Py_ssize_t bit, /):
        """Set `bit`."""
        set_bit(self, checked(self, bit, self.size))

    def clear(self, Py_ssize_t bit, /):
        """Clear `bit`."""
        take_bit(self, checked(self, bit, self.size))

    def test(self, Py_ssize_t bit, /):
        """Tell whether `bit` is set."""
        return test_bit(self, checked(self, bit, self.size))

    def take(self, Py_ssize_t bit, /):
        """Clear `bit` and tell whether it was set, in one atomic step."""
        return take_bit(self, checked(self, bit, self.size))

    def set_range(self, Py_ssize_t start, Py_ssize_t count, /):
        """Set `count` bits from `start`."""
        bits_over(bits_set, bits_of(self), start, checked_end(self, start, count))

    def clear_range(self, Py_ssize_t start, Py_ssize_t count, /):
        """Clear `count` bits from `start`."""
        bits_over(bits_clear, bits_of(self), start, checked_end(self, start, count))

    def take_range(self, Py_ssize_t start, Py_ssize_t count, /):
        """Clear `count` bits from `start`, word by word, and tell whether any was set."""
        return bits_over(bits_take, bits_of(self), start, checked_end(self, start, count)) != 0

    def count(self, Py_ssize_t start=0, stop=None):
        """Count the bits set in [start, stop)."""
        cdef size_t end = checked_stop(self, stop)
        return bits_over(bits_count, bits_of(self), checked(self, start, self.size + 1), end)

    def find_next_set(self, Py_ssize_t start=0, stop=None):
        """Return the first set bit in [start, stop), -1 if there is none."""
        cdef size_t end = checked_stop(self, stop)
        return bits_find(bits_find_set, bits_of(self), checked(self, start, self.size + 1), end)

    def find_next_clear(self, Py_ssize_t start=0, stop=None):
        """Return the first clear bit in [start, stop), -1 if there is none."""
        cdef size_t end = checked_stop(self, stop)
        return bits_find(bits_find_clear, bits_of(self), checked(self, start, self.size + 1), end)

    def next_dirty_area(self, Py_ssize_t start=0, stop=None, max_count=None):
        """Return (start, count) of the first run of set bits in [start, stop), None if there is none.

        `max_count` ends a longer run early.
        """
        cdef size_t end = checked_stop(self, stop)
        cdef Py_ssize_t most = end if max_count is None else max_count
        cdef Py_ssize_t first = bits_find(bits_find_set, bits_of(self), checked(self, start, self.size + 1), end), clear
        if max_count is not None and most < 1:
            raise ValueError(f"max_count must be at least 1, not {most}")
        if first < 0:
            return None
        end = min(end, <size_t>first + <size_t>most)
        clear = bits_find(bits_find_clear, bits_of(self), first, end)
        return first, (clear if clear >= 0 else <Py_ssize_t>end) - first

    def take_areas(self, Py_ssize_t start=0, stop=None, Py_ssize_t max_areas=256):
        """Clear the first `max_areas` runs of set bits in [start, stop) and return them in order, as [(start, count)].

        How a bitmap is drained, in lists of bounded length:

            while areas := bitmap.take_areas():
                for start, count in areas:
                    ...                         # clear, then read: a bit set again from here on is in a later list

        No bit is cleared that is not returned. Two threads that take at once may both return a bit.
        """
        cdef size_t end = checked_stop(self, stop), first = checked(self, start, self.size + 1), n = 0, i
        cdef bits_area found[64]
        cdef list areas = []
        if max_areas < 1:
            raise ValueError(f"max_areas must be at least 1, not {max_areas}")
        try:
            while len(areas) < max_areas:
                n = bits_take_areas(bits_of(self), first, end, found, min(max_areas - len(areas), 64))
                for i in range(n):
                    areas.append((found[i].start, found[i].stop - found[i].start))
                if n < 64:
                    break
                first = found[n - 1].stop
        except MemoryError:             # nobody will know of them
            for i in range(n):
                bits_over(bits_set, bits_of(self), found[i].start, found[i].stop)
            for first, n in areas:
                bits_over(bits_set, bits_of(self), first, first + n)
            raise
        return areas

    def merge(self, Bitmap other not None, /):
        """Set every bit that is set in `other`, a bitmap of the same length."""
        check_same_size(self, other)
        bits_with(bits_merge, bits_of(self), bits_of(other))

    def take_into(self, Bitmap target not None, /):
        """Move every set bit into `target`, a bitmap of the same length; return how many moved.

        A word is emptied first and then added to the target, so that a bit set again meanwhile is never lost; between
        the two steps its bits are in neither map.
        """
        check_same_size(self, target)
        if target is self:
            raise ValueError("a bitmap cannot be moved into itself")
        return bits_with(bits_move, bits_of(self), bits_of(target))


cdef inline size_t checked(Bitmap bitmap, Py_ssize_t bit, size_t limit) except? 0:
    if <size_t>bit >= limit:
        raise IndexError(f"{bit} is outside a bitmap of {bitmap.size} bits")
    return bit


cdef inline size_t checked_stop(Bitmap bitmap, stop) except? 0:
    return bitmap.size if stop is None else checked(bitmap, stop, bitmap.size + 1)


cdef inline size_t checked_end(Bitmap bitmap, Py_ssize_t start, Py_ssize_t count) except? 0:
    if start < 0 or count < 0 or <size_t>start > bitmap.size or <size_t>count > bitmap.size - start:
        raise IndexError(f"{count} bits from {start} are not inside a bitmap of {bitmap.size} bits")
    return start + count


cdef int check_same_size(Bitmap bitmap, Bitmap other) except -1:
    if bitmap.size != other.size:
        raise ValueError(f"the bitmaps differ in length: {bitmap.size} and {other.size} bits")
    return 0


cdef inline bits bits_of(Bitmap bitmap) noexcept:
    # The summary is built again under the GIL from end to end: nobody may search one that is half built.
    cdef bits result = bits(bitmap.words, bitmap.summary, &bitmap.sweeping, bitmap.nwords, True)
    if bitmap.stale:
        if bitmap.exports:
            result.summed = False
        else:
            bits_summarise(&result)
            bitmap.stale = False
    return result


cdef uint8_t* at(buffer, Py_buffer* view, int flags, Py_ssize_t offset, size_t n) except NULL:
    # Where `n` bytes at `offset` stand; the caller releases the view.
    PyObject_GetBuffer(buffer, view, flags)
    if offset < 0 or offset > view.len or n > <size_t>(view.len - offset):
        PyBuffer_Release(view)
        raise IndexError(f"{n} bytes at offset {offset} are not inside a buffer of {view.len} bytes")
    return <uint8_t*>view.buf + offset


cdef Py_ssize_t put_number(buffer, Py_ssize_t offset, uint64_t value, size_t n) except -1:
    cdef Py_buffer view
    frame_put_number(at(buffer, &view, PyBUF_WRITABLE, offset, n), value, n)
    PyBuffer_Release(&view)
    return offset + <Py_ssize_t>n


cdef uint64_t get_number(buffer, Py_ssize_t offset, size_t n) except? 0:
    cdef Py_buffer view
    cdef uint64_t value = frame_get_number(at(buffer, &view, PyBUF_SIMPLE, offset, n), n)
    PyBuffer_Release(&view)
    return value


def put_byte(buffer, Py_ssize_t offset, uint8_t value, /):
    """Write an 8-bit number at `offset`; return the offset behind it."""
    return put_number(buffer, offset, value, 1)


def put_be16(buffer, Py_ssize_t offset, uint16_t value, /):
    """Write a 16-bit number, big-endian, at `offset`; return the offset behind it."""
    return put_number(buffer, offset, value, 2)


def put_be32(buffer, Py_ssize_t offset, uint32_t value, /):
    """Write a 32-bit number, big-endian, at `offset`; return the offset behind it."""
    return put_number(buffer, offset, value, 4)


def put_be64(buffer, Py_ssize_t offset, uint64_t value, /):
    """Write a 64-bit number, big-endian, at `offset`; return the offset behind it."""
    return put_number(buffer, offset, value, 8)


def get_byte(buffer, Py_ssize_t offset, /):
    """Read the 8-bit number at `offset`."""
    return get_number(buffer, offset, 1)


def get_be16(buffer, Py_ssize_t offset, /):
    """Read the 16-bit big-endian number at `offset`."""
    return get_number(buffer, offset, 2)


def get_be32(buffer, Py_ssize_t offset, /):
    """Read the 32-bit big-endian number at `offset`."""
    return get_number(buffer, offset, 4)


def get_be64(buffer, Py_ssize_t offset, /):
    """Read the 64-bit big-endian number at `offset`."""
    return get_number(buffer, offset, 8)


cdef int check_record(uint64_t sector, uint64_t flags, bytes name) except -1:
    if sector >> (64 - SECTOR_BITS):
        raise OverflowError(f"sector {sector} does not fit the 55 bits of a record")
    if flags >> SECTOR_BITS:
        raise OverflowError(f"flags {flags:#x} do not fit the 9 bits of a record")
    if len(name) > 255:
        raise OverflowError(f"a name of {len(name)} bytes does not fit a record, which holds at most 255")
    return 0


cdef int check_zero_run(uint64_t sector, uint64_t count, bytes name) except -1:
    check_record(sector, 0, name)
    if count and count - 1 > ((<uint64_t>-1 >> SECTOR_BITS) - sector) // SECTORS_PER_BLOCK:
        raise OverflowError(f"{count} blocks from sector {sector} do not fit the 55 bits of a record's sector")
    return 0


def put_block_header(buffer, Py_ssize_t offset, uint64_t sector, uint64_t flags, bytes name not None, /):
    """Write a record's word and name at `offset`; return the offset behind it.

        | be64: sector << 9 | flags | u8: n | name, n bytes |

    OverflowError if sector, flags or name do not fit, IndexError if the record does not.
    """
    cdef Py_buffer view
    cdef uint8_t* p
    cdef size_t length = len(name), n
    check_record(sector, flags, name)
    p = at(buffer, &view, PyBUF_WRITABLE, offset, 9 + length)
    n = frame_head(p, sector << SECTOR_BITS | flags, PyBytes_AS_STRING(name), length)
    PyBuffer_Release(&view)
    return offset + <Py_ssize_t>n


def put_zero_records(buffer, Py_ssize_t offset, uint64_t sector, uint64_t count, bytes name not None, /):
    """Write `count` zero-block records, at `sector` and every 2048 sectors on; return the offset behind them."""
    cdef Py_buffer view
    cdef uint8_t* p
    cdef const char* text = PyBytes_AS_STRING(name)
    cdef size_t length = len(name), n = count
    check_zero_run(sector, count, name)
    p = at(buffer, &view, PyBUF_WRITABLE, offset, n * (9 + length))
    frame_zero_run(p, sector << SECTOR_BITS, n, text, length)
    PyBuffer_Release(&view)
    return offset + <Py_ssize_t>(n * (9 + length))


def parse_run(buffer, Py_ssize_t start, Py_ssize_t stop, /):
    """Read the record at `start`, and the zero records that continue it, up to `stop`.

    Returns (flags, name, sector, count, offset behind), or None if the first record is not complete before `stop`:

        DEVICE_BLOCK            the offset behind is that of the payload, which is not looked at
        DEVICE_BLOCK|ZERO_BLOCK `count` records of the same flags and name, 2048 sectors apart, are one run
        anything else           flags = the low 9 bits, name = b"", sector = the rest, e.g. the percentage
    """
    cdef Py_buffer view
    cdef frame_run run
    cdef const uint8_t* p
    if start > stop:
        raise IndexError(f"start {start} is behind stop {stop}")
    p = at(buffer, &view, PyBUF_SIMPLE, start, stop - start)
    try:
        run = frame_parse(p, stop - start)
        if run.nbytes == 0:
            return None
        name = PyBytes_FromStringAndSize(run.name, run.length)
        return run.word & FLAGS, name, run.word >> SECTOR_BITS, run.count, start + <Py_ssize_t>run.nbytes
    finally:
        PyBuffer_Release(&view)


def next_data(int fd, int64_t offset, int64_t size, /):
    """Return [start, end) of the next stretch of data at or behind `offset` in the first `size` bytes, or None.

    Where the file system cannot tell, all is data: (offset, size). Moves the file's own position. Drops the GIL.
    """
    cdef int64_t start, end
    cdef bint found
    if offset < 0:
        io_fail(EINVAL)
    if offset >= size:
        return None
    with nogil:
        found = io_next_data(fd, offset, size, &start, &end)
    return (start, end) if found else None


def punch_hole(int fd, int64_t offset, int64_t nbytes, /):
    """Make [offset, offset + nbytes) a hole that reads as zeros; the file's size stays. OSError where it cannot."""
    with nogil:
        io_fallocate(fd, FALLOC_FL_PUNCH_HOLE, offset, nbytes)


def zero_range(int fd, int64_t offset, int64_t nbytes, /):
    """Zero [offset, offset + nbytes) and keep it allocated; the file's size stays. OSError where it cannot."""
    with nogil:
        io_fallocate(fd, FALLOC_FL_ZERO_RANGE, offset, nbytes)


def zero_out(int fd, uint64_t offset, uint64_t nbytes, /):
    """Zero [offset, offset + nbytes) of a block device (BLKZEROOUT). OSError where it cannot."""
    with nogil:
        io_zero_out(fd, offset, nbytes)


def pread_full(int fd, buffer, int64_t offset, /):
    """Read at `offset` until `buffer` is full or the file ends; return the bytes read. Drops the GIL."""
    cdef Py_buffer view
    cdef Py_ssize_t done
    PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
    try:
        with nogil:
            done = io_pread(fd, <uint8_t*>view.buf, view.len, offset)
        return done
    finally:
        PyBuffer_Release(&view)


def pwrite_full(int fd, buffer, int64_t offset, /):
    """Write all of `buffer` at `offset`. Drops the GIL. After an error an unknown part of it is written."""
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            io_pwrite(fd, <const uint8_t*>view.buf, view.len, offset)
    finally:
        PyBuffer_Release(&view)


@cython.final
cdef class Mapping:
    """The first `size` bytes of a regular file, mapped shared and read-only.

    The buffer protocol shows them. Where the file has been truncated, touching them is a SIGBUS, so hand them to
    system calls only, which answer EFAULT. The pages go when the last view or BlockBuffer that shows them lets go.
    """

    cdef uint8_t* base
    cdef int fd                     # its own
    cdef size_t length
    cdef bint closed

    def __cinit__(self, int fd, Py_ssize_t size, /):
        if size < 0:
            raise ValueError(f"a mapping cannot have {size} bytes")
        if size:
            self.base = io_map(fd, size, &self.fd)
        self.length = size

    def __dealloc__(self):
        io_unmap(self.base, self.length, self.fd)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.base, self.length, 1, flags)

    @property
    def size(self):
        """Bytes mapped."""
        return self.length

    def close(self):
        """Keep later fill_mapped calls from using it, and give its descriptor back. Safe twice.

        Whoever still shows its pages, say an exception's frame, keeps memory and not the file and its locks.
        """
        cdef int fd = self.fd
        self.closed, self.fd = True, -1
        if self.base != NULL and fd >= 0:
            os.close(fd)


@cython.final
cdef class BlockBuffer:
    """One block, 1 MiB, page aligned: read into, scanned, and sent or stored while it is hot in the cache.

    `payload` is what the block holds now: the own bytes, or, after fill_mapped, those of the mapping. The buffer
    protocol shows the own bytes, writable; after writing there call filled().
    """

    cdef uint8_t* own               # BLOCK_SIZE bytes
    cdef bint zero                  # all of the payload is zero, as far as a scan has told
    cdef Mapping mapping            # None: the payload is `own`
    cdef public bint mappable       # whether fill_mapped may show the mapping: not to somebody who reads the payload
    cdef public bint populates      # whether fill_mapped makes its pages present: not for who shares them, see PayloadError
    cdef int64_t offset             # of a mapped payload
    cdef pages pages                # hold a payload that nobody has looked at, on its way to a file
    cdef public bint takes_pages    # whether get_block may leave it there: for whoever only stores it
    cdef public bint movable        # whether storing the payload may take it away: for whoever does not look at it again
    cdef Py_ssize_t exports         # views of `own` that are alive; under the GIL
    cdef bint busy                  # a thread is at the payload without the GIL; under the GIL
    cdef bint sending               # it only reads the payload, so that others may look at it, too

    def __cinit__(self):
        self.own = io_alloc_pages(BLOCK_SIZE)
        self.zero = self.mappable = self.populates = True

    def __init__(self):
        pass                        # takes no arguments, which a __cinit__ without any does not check

    def __dealloc__(self):
        pages_close(&self.pages)
        free(self.own)

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.busy and not self.sending:
            raise BufferError("the block is in use in another thread: one at a time")
        if pages_held(&self.pages):
            pages_read(&self.pages, self.own)
        PyBuffer_FillInfo(view, self, self.own, BLOCK_SIZE, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* view):
        self.exports -= 1

    @property
    def is_zero(self):
        """Whether the last fill, fill_mapped or filled found only zeros."""
        return self.zero

    @property
    def has_pages(self):
        """Whether the payload came as pages that nobody has looked at: see takes_pages."""
        return pages_held(&self.pages)

    @property
    def data(self):
        """The own 1 MiB, for writing; call filled() afterwards."""
        return memoryview(self)

    @property
    def payload(self):
        """What is to be sent, 1 MiB, read-only. A mapped one is for system calls only: see Mapping."""
        if self.mapping is None:
            return memoryview(self).toreadonly()
        return memoryview(self.mapping)[self.offset:self.offset + BLOCK_SIZE]

    def fill(self, int fd, int64_t offset, Py_ssize_t nbytes, /):
        """Read `nbytes` at `offset`, put zeros behind them up to 1 MiB, and tell whether all is zero.

        Where the file ends early, zeros follow as well. Drops the GIL once. After an error the contents are undefined.
        """
        self.forget(nbytes)
        self.busy = True
        try:
            with nogil:
                self.read(fd, offset, 0, nbytes)
        finally:
            self.busy = False
        return self.zero

    def fill_mapped(self, Mapping mapping not None, int fd, int64_t offset, Py_ssize_t nbytes, /):
        """Do what fill does, but show the mapping's pages instead of a copy if the block is data.

        `mapping` maps the file `fd`. The first 4 KiB decide: if they are not zero the block is data, its pages are made
        present without touching them, and it is not scanned. Wherever that fails it is filled by reading.
        """
        self.read_mapped(mapping, fd, offset, nbytes)
        return self.zero

    def filled(self, Py_ssize_t nbytes, /):
        """Say that `nbytes` were written to `data`: put zeros behind them, scan, and tell whether all is zero."""
        self.forget(nbytes)
        self.busy = True
        with nogil:
            self.finish(nbytes)
        self.busy = False
        return self.zero

    def store(self, int fd, int64_t offset, Py_ssize_t nbytes, /):
        """Write the first `nbytes` at `offset`. Drops the GIL. After an error an unknown part of it is written."""
        check_nbytes(nbytes)
        self.begin()
        try:
            self.take_back()
            with nogil:
                io_pwrite(fd, self.own, nbytes, offset)
        finally:
            self.busy = False

    def store_sparse(
        self, int fd, int64_t offset, Py_ssize_t nbytes, Py_ssize_t cluster, bint punch, bint allocate=False, /
    ):
        """Write the clusters of the first `nbytes` that are not zero at `offset`; return the bytes written.

        Clusters begin at multiples of `cluster` in the target. Zero ones are skipped, or with `punch` made holes, and
        written where holes are not supported; they do not extend the file. A payload that came as pages is stored whole
        and then punched, if a look at four places of `fd`, which must be readable, finds zeros. `allocate` has the file
        system allocate what is written first, which is faster where there are holes. Drops the GIL.
        """
        cdef size_t written
        check_nbytes(nbytes)
        if cluster < 1:
            raise ValueError(f"a cluster must have at least one byte, not {cluster}")
        self.begin()
        try:
            if punch and nbytes == BLOCK_SIZE and pages_held(&self.pages):
                with nogil:
                    written = pages_store(&self.pages, fd, BLOCK_SIZE, offset, cluster, allocate, self.own)
                return written
            self.take_back()
            with nogil:
                written = io_store_sparse(fd, self.own, nbytes, offset, cluster, punch, allocate, NULL)
            return written
        finally:
            self.busy = False

    cdef int finish(self, size_t nbytes) noexcept nogil:
        memset(self.own + nbytes, 0, BLOCK_SIZE - nbytes)
        self.zero = buffer_is_zero_c(self.own, BLOCK_SIZE)
        return 0

    cdef int read(self, int fd, int64_t offset, size_t done, size_t nbytes) except -1 nogil:
        done += io_pread(fd, self.own + done, nbytes - done, offset + <int64_t>done)
        return self.finish(done)

    cdef int read_mapped(self, Mapping mapping, int fd, int64_t offset, Py_ssize_t nbytes) except -1:
        cdef bint mapped = False, mappable = (self.mappable and nbytes == BLOCK_SIZE and not mapping.closed and offset >= 0
                              and mapping.length >= BLOCK_SIZE and <size_t>offset <= mapping.length - BLOCK_SIZE)
        self.forget(nbytes)
        self.busy = True
        try:
            with nogil:
                mapped = self.read_or_map(mapping.base if mappable else NULL, fd, offset, nbytes)
        finally:
            self.busy = False
        if mapped:
            self.mapping = mapping
            self.offset = offset
        return 0

    cdef bint read_or_map(self, uint8_t* base, int fd, int64_t offset, size_t nbytes) except -1 nogil:
        cdef size_t probed = min(nbytes, <size_t>4096)
        cdef size_t got = io_pread(fd, self.own, probed, offset)
        if base != NULL and not buffer_is_zero_c(self.own, got) and (not self.populates or io_populate(base + offset, BLOCK_SIZE)):
            self.zero = False
            return True
        self.read(fd, offset, got, nbytes)
        return False

    cdef int begin(self) except -1:
        # Have the block for this thread alone; `busy` is to be False again when it has the GIL again.
        if self.busy:
            raise RuntimeError("the block is in use in another thread: one at a time")
        self.busy = True
        return 0

    cdef int forget(self, Py_ssize_t nbytes) except -1:
        # Drop the payload, wherever it is, for so many bytes to come.
        check_nbytes(nbytes)
        self.begin()
        self.busy = False               # nobody comes in between: the GIL is held until the caller says busy
        self.mapping = None
        if pages_held(&self.pages):
            pages_close(&self.pages)
        return 0

    cdef int take_back(self) except -1:
        # Make the payload the own bytes: for whoever must touch it, and for sends that met a hole in the mapping. When
        # busy.
        if pages_held(&self.pages):
            with nogil:
                pages_read(&self.pages, self.own)
        cdef Mapping mapping = self.mapping
        if mapping is not None:
            self.mapping = None
            with nogil:
                self.read(mapping.fd, self.offset, 0, BLOCK_SIZE)
        return 0


cdef int check_nbytes(Py_ssize_t nbytes) except -1:
    if not 0 <= nbytes <= BLOCK_SIZE:
        raise ValueError(f"a block holds 0 to {BLOCK_SIZE} bytes, not {nbytes}")
    return 0


include "_behind.pxi"
include "_gate.pxi"


class PayloadError(OSError):
    """The file of a payload cannot be read at `offset`; the stream, which has part of the payload, is not to blame."""


def reset_connection(int fd, /):
    """Break a TCP connection at once: the peer sees a reset, whoever else has `fd`, and nothing more is sent.

    What it has received already it can still read.
    """
    stream_break(fd)


@cython.final
cdef class OutputBuffer:
    """Bytes on their way into `fd`, a socket, a pipe or a file: what is small is staged, payloads leave at once.

        position - flushed bytes are staged:   [..... head ====== tail .....]

    A wait for the other side ends with OSError(ECANCELED) when `wake_fd` becomes readable; to be woken in a pipe, `fd`
    must be non-blocking. A broken peer is EPIPE, never SIGPIPE. After an error the stream is dead.
    """

    cdef stream s
    cdef bint shares

    def __cinit__(self, int fd, Py_ssize_t capacity=65536, /, *, int wake_fd=-1):
        stream_init(&self.s, fd, capacity, wake_fd)

    def __dealloc__(self):
        free(self.s.staging)

    @property
    def position(self):
        """Bytes put."""
        return self.s.position

    @property
    def flushed(self):
        """Bytes that the kernel took."""
        return self.s.flushed

    def put_byte(self, uint8_t value, /):
        """Put an 8-bit number."""
        self.put_number(value, 1)

    def put_be16(self, uint16_t value, /):
        """Put a 16-bit number, big-endian."""
        self.put_number(value, 2)

    def put_be32(self, uint32_t value, /):
        """Put a 32-bit number, big-endian."""
        self.put_number(value, 4)

    def put_be64(self, uint64_t value, /):
        """Put a 64-bit number, big-endian."""
        self.put_number(value, 8)

    def put_buffer(self, buffer, /):
        """Put the bytes of `buffer`: staged if they fit, else sent from where they are."""
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            stream_check(&self.s)
            if <size_t>view.len <= self.s.capacity - self.s.tail:
                memcpy(self.s.staging + self.s.tail, view.buf, view.len)
                stream_staged(&self.s, view.len)
            else:
                self.send(<const uint8_t*>view.buf, view.len, None)
        finally:
            PyBuffer_Release(&view)

    def put_block_header(self, uint64_t sector, uint64_t flags, bytes name not None, /):
        """Put a record's word and name. OverflowError if sector, flags or name do not fit."""
        check_record(sector, flags, name)
        self.head(sector << SECTOR_BITS | flags, name)

    def put_zero_records(self, uint64_t sector, uint64_t count, bytes name not None, /):
        """Put `count` zero-block records, at `sector` and every 2048 sectors on; they leave with what follows."""
        cdef size_t length = len(name), room
        cdef uint8_t* p
        check_zero_run(sector, count, name)
        while count:
            p = self.reserve(9 + length)
            room = min(count, <uint64_t>((self.s.capacity - self.s.tail) // (9 + length)))
            frame_zero_records(p, sector << SECTOR_BITS, room, PyBytes_AS_STRING(name), length)
            stream_staged(&self.s, room * (9 + length))
            sector += room * SECTORS_PER_BLOCK
            count -= room

    def put_block(self, uint64_t sector, uint64_t flags, bytes name not None, BlockBuffer blk not None, /):
        """Put a record and its payload, in one system call if the kernel takes them.

        With FLAG_ZERO_BLOCK in `flags` the record has no payload and is staged. A mapped payload whose pages have gone
        is read into the block's own bytes, and the send goes on from the byte where it stopped.
        """
        self.put_block_header(sector, flags, name)
        if not flags & FLAG_ZERO_BLOCK:
            self.send(NULL, BLOCK_SIZE, blk)

    def put_payload(self, BlockBuffer blk not None, Py_ssize_t offset, Py_ssize_t nbytes, /):
        """Put a slice of the payload of `blk`, for senders that pace within a block; as put_block does it."""
        if offset < 0 or nbytes < 0 or offset > BLOCK_SIZE - nbytes:
            raise IndexError(f"{nbytes} bytes at offset {offset} are not inside a block")
        self.send(NULL, nbytes, blk, offset)

    def put_file_blocks(
        self, Mapping mapping not None, uint64_t block, uint64_t count, bytes name not None, BlockBuffer blk not None,
        Bitmap dirty not None, size_t bits_per_block, double seconds, /
    ):
        """Put up to `count` whole blocks of a file from `block` on, each through `blk`, and return how many.

        Each block's bits are cleared before it is read. It ends when `seconds` are over, and at the first block that is
        zero or cannot be read: of that one the bits are cleared and nothing is put.
        """
        cdef uint64_t i = 0
        cdef double end = io_seconds() + seconds
        check_record(0, 0, name)
        if count > mapping.length // BLOCK_SIZE or block > mapping.length // BLOCK_SIZE - count:
            raise IndexError(f"{count} blocks from {block} are not inside a mapping of {mapping.length} bytes")
        if bits_per_block > BLOCK_SIZE:
            raise ValueError(f"a block cannot have {bits_per_block} bits")
        checked_end(dirty, block * bits_per_block, count * bits_per_block)
        while i < count and (i == 0 or io_seconds() < end):
            bits_over(bits_clear, bits_of(dirty), (block + i) * bits_per_block, (block + i + 1) * bits_per_block)
            try:
                blk.read_mapped(mapping, mapping.fd, (block + i) * BLOCK_SIZE, BLOCK_SIZE)
            except OSError:
                break
            if blk.zero:
                break
            self.head((block + i) * SECTORS_PER_BLOCK << SECTOR_BITS | FLAG_DEVICE_BLOCK, name)
            self.send(NULL, BLOCK_SIZE, blk)
            i += 1
        return i

    def share_pages(self):
        """Hand over the pages of mapped payloads, not copies, and tell whether `fd`, a non-blocking pipe or socket, takes
        them. What is written to the pages before the peer reads them, it reads."""
        self.shares = self.s.takes_pages
        return self.shares

    def set_idle_timeout(self, double seconds, /):
        """Let waits end with OSError(ETIME) when the peer took less than 4 KiB in `seconds` of them; 0 is for ever."""
        self.s.idle = self.s.first = seconds

    def flush(self):
        """Hand everything that is staged to the kernel."""
        self.send(NULL, 0, None)

    cdef uint8_t* reserve(self, size_t n) except NULL:
        # Room for n bytes, n <= HEADER_MAX.
        stream_check(&self.s)
        if n > self.s.capacity - self.s.tail:
            self.send(NULL, 0, None)
        return self.s.staging + self.s.tail

    cdef int head(self, uint64_t word, bytes name) except -1:
        cdef uint8_t* p = self.reserve(HEADER_MAX)
        stream_staged(&self.s, frame_head(p, word, PyBytes_AS_STRING(name), len(name)))
        return 0

    cdef int put_number(self, uint64_t value, size_t n) except -1:
        frame_put_number(self.reserve(n), value, n)
        stream_staged(&self.s, n)
        return 0

    cdef int send(self, const uint8_t* p, size_t n, BlockBuffer blk, size_t offset=0) except -1:
        # What is staged, then n bytes at p, or at `offset` of the payload of blk.
        stream_check(&self.s)
        if blk is not None:
            blk.begin()
            blk.sending = True
        self.s.busy = True
        try:
            self.s.position += n
            return self.send_all(p, n, blk, offset)
        finally:
            self.s.busy = False
            if blk is not None:
                blk.busy = blk.sending = False

    cdef int send_all(self, const uint8_t* p, size_t n, BlockBuffer blk, size_t offset) except -1:
        cdef size_t left = n
        cdef int error, file
        cdef bint mapped
        while True:
            mapped = blk is not None and blk.mapping is not None
            file = blk.mapping.fd if mapped and self.shares else -1
            if blk is not None:
                p = (blk.mapping.base + blk.offset if mapped else blk.own) + offset
            with nogil:
                error = stream_send(&self.s, p + n, &left, file, 0 if file < 0 else blk.offset + offset + n, mapped)
            if error == 0:
                return 0
            if not mapped:
                return io_fail(error)
            try:
                blk.take_back()         # the file was truncated, or cannot be read there: pread() tells
            except OSError as failure:
                unreadable = PayloadError(failure.errno, failure.strerror)
                unreadable.offset = blk.offset
                raise unreadable from failure


@cython.final
cdef class InputBuffer:
    """Bytes that come out of `fd`, a socket, a pipe or a file; payloads go straight to their block.

    A wait for the other side ends with OSError(ECANCELED) when `wake_fd` becomes readable. The end of the stream inside
    an item is EOFError. After either the stream is dead. `begun` is what somebody has read of the stream already.
    """

    cdef stream s
    cdef bint pages                 # payloads come as pages of a file

    def __cinit__(self, int fd, Py_ssize_t capacity=65536, /, *, int wake_fd=-1, bytes begun=b""):
        stream_init(&self.s, fd, capacity, wake_fd)
        if len(begun) > capacity:
            raise ValueError(f"{len(begun)} bytes do not fit a staging buffer of {capacity}")
        memcpy(self.s.staging, PyBytes_AS_STRING(begun), len(begun))
        self.s.tail = len(begun)

    def set_idle_timeout(self, double seconds, double first, /):
        """Let waits end with OSError(ETIME) when less than 4 KiB of payload came in `seconds` of them; 0 is for ever.

        Payload is what get_block, get_buffer, get_some and skip got, and zero records. 4 MiB that hold none of it are
        OSError(EPROTO). Until the first byte, `first` seconds are waited; 0 is for ever.
        """
        self.s.idle = seconds
        self.s.first = first

    def __dealloc__(self):
        free(self.s.staging)

    @property
    def position(self):
        """Bytes consumed."""
        return self.s.position

    def payload_came(self):
        """Say that what was got counts as payload, which begins a new idle time."""
        self.s.useful += STREAM_USEFUL

    def get_byte(self):
        """Get an 8-bit number."""
        return self.take(1)[0]

    def get_be16(self):
        """Get a 16-bit big-endian number."""
        return load_be16(self.take(2))

    def get_be32(self):
        """Get a 32-bit big-endian number."""
        return load_be32(self.take(4))

    def get_be64(self):
        """Get a 64-bit big-endian number."""
        return load_be64(self.take(8))

    def get_buffer(self, Py_ssize_t nbytes, /):
        """Get the next `nbytes` bytes. The memory for them is allocated first: check the number."""
        if nbytes < 0:
            raise ValueError(f"cannot get {nbytes} bytes")
        cdef bytes result = PyBytes_FromStringAndSize(NULL, nbytes)
        self.take_to(<uint8_t*>PyBytes_AS_STRING(result), nbytes)
        return result

    @property
    def staged(self):
        """Bytes that have arrived and are not consumed: so many can be had without waiting."""
        return self.s.tail - self.s.head

    def get_some(self, Py_ssize_t nbytes, /):
        """Get 1 to `nbytes` bytes: what is staged, else what the next read brings; b"" at the end."""
        if nbytes <= 0:
            raise ValueError(f"cannot get {nbytes} bytes")
        try:
            self.require(1)
        except EOFError:
            return b""
        cdef size_t n = min(<size_t>nbytes, self.s.tail - self.s.head)
        result = PyBytes_FromStringAndSize(<const char*>self.s.staging + self.s.head, n)
        stream_consume(&self.s, n)
        self.s.useful += n
        return result

    def peek_byte(self):
        """Return the next byte without consuming it; EOFError at the end of the stream."""
        self.require(1)
        return self.s.staging[self.s.head]

    def skip(self, uint64_t nbytes, bint useful=True, /):
        """Drop the next `nbytes` bytes; they are payload if they are `useful`."""
        stream_skip(&self.s, nbytes, useful)

    def skip_words(self, uint64_t mask, uint64_t a, uint64_t a_nbytes, uint64_t b, uint64_t b_nbytes, /):
        """Drop words that are `a` or `b` under `mask`, each with the bytes behind it, and get the first other word.

        After 65,536 of them the next one is got, whatever it is, so that signals and cancels are heard.
        """
        return stream_skip_words(&self.s, mask, a, a_nbytes, b, b_nbytes)

    def next_run(self):
        """Get the next record, with the zero records behind it that continue it and have arrived.

        Returns (flags, name, sector, count) as parse_run does. The payload of a data record is next: get_block.
        """
        stream_check(&self.s)
        cdef frame_run run = frame_parse(self.s.staging + self.s.head, self.s.tail - self.s.head)
        while not run.nbytes:
            self.require(self.s.tail - self.s.head + 1)
            run = frame_parse(self.s.staging + self.s.head, self.s.tail - self.s.head)
        name = PyBytes_FromStringAndSize(run.name, run.length)
        stream_consume(&self.s, run.nbytes)
        if run.word & FLAG_DEVICE_BLOCK and run.word & FLAG_ZERO_BLOCK:
            self.s.useful += STREAM_USEFUL
        self.s.peeks = False
        if not run.word & FLAG_DEVICE_BLOCK:
            stream_unpeek(&self.s, 0)   # whoever closes the socket must not leave anything in it
        elif self.pages:                # after data, the next head and none of its payload
            self.s.peeks = run.word & FLAG_ZERO_BLOCK != 0
            self.s.ahead = 0 if self.s.peeks else run.nbytes
        return run.word & FLAGS, name, run.word >> SECTOR_BITS, run.count

    def expect_pages(self):
        """Say that payloads are pages, on this machine: if `fd` is a socket or a pipe that does not block, they may pass
        through as such. Over TCP the next item is then looked for again after 0.2 ms before it is waited for."""
        self.pages = stream_expect_pages(&self.s)

    def get_block(self, BlockBuffer blk not None, /):
        """Get a payload, 1 MiB, into the own bytes of `blk`. It is not scanned: `is_zero` is False afterwards.

        After an error `blk` holds part of the payload.
        """
        stream_check(&self.s)
        blk.forget(BLOCK_SIZE)
        blk.begin()
        self.s.busy = True
        try:
            blk.zero = False
            self.get_payload(blk)
        finally:
            blk.busy = self.s.busy = False

    cdef int get_payload(self, BlockBuffer blk) except -1:
        cdef size_t done = 0
        if self.pages and blk.takes_pages and stream_unstage(&self.s) and pages_open(&blk.pages):
            with nogil:
                done = pages_take(&blk.pages, &self.s, BLOCK_SIZE)
            if done == BLOCK_SIZE:
                return 0
            self.pages, self.s.ahead, self.s.naps = False, 0, False     # smaller pieces than pages: copies are faster
            pages_read(&blk.pages, blk.own)
        with nogil:
            stream_take(&self.s, blk.own + done, BLOCK_SIZE - done)
        return 0

    cdef int require(self, size_t n) except -1:
        return stream_need(&self.s, n)

    cdef const uint8_t* take(self, size_t n) except NULL:
        # The bytes stay where they are until the next read.
        self.require(n)
        cdef const uint8_t* p = self.s.staging + self.s.head
        stream_consume(&self.s, n)
        return p

    cdef int take_to(self, uint8_t* p, size_t n) except -1:
        stream_check(&self.s)
        if n <= self.s.tail - self.s.head and n < GIL_NBYTES:
            return stream_take(&self.s, p, n)
        self.s.busy = True
        try:
            with nogil:
                stream_take(&self.s, p, n)
        finally:
            self.s.busy = False
        return 0
