# SPDX-License-Identifier: GPL-2.0-or-later
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""The four verbs: is it zero, bitmaps, big-endian framing, block buffers and block I/O. Knows no policy.

Data crosses this border by the block or by the run, metadata by the run; no Python loop goes over bits or bytes.
Buffers are anything C-contiguous; what is written holds no objects. System calls run without the GIL, go on after EINTR
(running Python's signal handlers) and after short counts, and raise OSError with the errno. Numbers are what
operator.index() takes: a float is a TypeError. A BlockBuffer belongs to one thread at a time; the others may be shared.

The loops are in C, one idea a header, in the folder c/. Four extensions stand on this one: `_gate`, which counts who is
inside a disk; `_output` and `_input`, with which blocks and records travel; and `_storing`, the queue behind them.
"""

import os

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_CheckExact, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EINVAL
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from .c.bits cimport (
    bits, bits_area, bits_clear, bits_count, bits_count_rounded, bits_find_clear, bits_find_set, bits_merge, bits_move,
    bits_pair_fn, bits_range_fn, bits_set, bits_summarise, bits_take, bits_take_areas,
)
from .c.calls cimport (
    FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, io_fallocate, io_next_data, io_pread, io_pread_extents, io_pwrite,
    io_pwrite_extents, io_start_writeback, io_zero_out,
)
from .c.fail cimport io_fail
from .c.frame cimport (
    FRAME_EXTENTS_MAX, frame_get_number, frame_head, frame_parse, frame_put_number, frame_run, frame_zero_records,
)
from .c.mapping cimport (
    io_alloc_gifts, io_alloc_pages, io_free_gifts, io_map, io_populate, io_renew_gifts, io_unmap,
)
from .c.pipes cimport pipes_close, pipes_free, pipes_held, pipes_new, pipes_read
from .c.plain cimport plain_get
from .c.sparse cimport io_store_sparse, pipes_store
from .c.zero cimport (
    zero_chosen, zero_detect, zero_kernel_fn, zero_kernels_built, zero_kernels_built_count, zero_run, zero_sample,
)


cdef extern from "c/index.h":
    pass

cdef enum:
    LINE = 64                       # of the cache: a vector that straddles two costs twice

globals().update(
    BLOCK_SIZE=BLOCK_SIZE, SECTOR_SIZE=SECTOR_SIZE, SECTOR_BITS=SECTOR_BITS, SECTORS_PER_BLOCK=SECTORS_PER_BLOCK,
    FLAG_DEVICE_BLOCK=FLAG_DEVICE_BLOCK, FLAG_EOS=FLAG_EOS, FLAG_PROGRESS=FLAG_PROGRESS,
    FLAG_ZERO_BLOCK=FLAG_ZERO_BLOCK,
)


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


cdef inline bint scan(zero_kernel_fn kernel, const void* p, size_t n) noexcept:
    cdef bint zero
    if n >= 8 and not zero_sample(<const uint8_t*>p, n):
        return False                # most data ends here, before the GIL is touched
    if n < GIL_NBYTES:
        return zero_run(kernel, p, n)
    with nogil:
        zero = zero_run(kernel, p, n)
    return zero


cdef inline bint scan_buffer(zero_kernel_fn kernel, buffer) except -1:
    cdef Py_buffer view
    cdef bint zero
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    zero = scan(kernel, view.buf, view.len)
    PyBuffer_Release(&view)
    return zero


def buffer_is_zero(buffer, /):
    """Tell whether every byte of `buffer` is 0; an empty buffer is.

    Any contiguous buffer of any length and alignment. Stops at the first 512 bytes that are not zero; drops the GIL
    from 512 KiB on.
    """
    if PyBytes_CheckExact(buffer):
        return scan(zero_chosen, PyBytes_AS_STRING(buffer), PyBytes_GET_SIZE(buffer))
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
        check(self, bit, self.size)
        set_bit(self, bit)

    def clear(self, Py_ssize_t bit, /):
        """Clear `bit`."""
        check(self, bit, self.size)
        take_bit(self, bit)

    def test(self, Py_ssize_t bit, /):
        """Tell whether `bit` is set."""
        check(self, bit, self.size)
        return test_bit(self, bit)

    def take(self, Py_ssize_t bit, /):
        """Clear `bit` and tell whether it was set, in one atomic step."""
        check(self, bit, self.size)
        return take_bit(self, bit)

    def set_range(self, Py_ssize_t start, Py_ssize_t count, /):
        """Set `count` bits from `start`."""
        over(bits_set, bits_of(self), start, checked_end(self, start, count))

    def clear_range(self, Py_ssize_t start, Py_ssize_t count, /):
        """Clear `count` bits from `start`."""
        over(bits_clear, bits_of(self), start, checked_end(self, start, count))

    def take_range(self, Py_ssize_t start, Py_ssize_t count, /):
        """Clear `count` bits from `start`, word by word, and tell whether any was set."""
        return over(bits_take, bits_of(self), start, checked_end(self, start, count)) != 0

    def take_range_if(self, Py_ssize_t start, Py_ssize_t count, Py_ssize_t enough, /):
        """Clear `count` bits from `start` if at least `enough` of them are set; tell whether that was so."""
        cdef size_t end = checked_end(self, start, count)
        if over(bits_count, bits_of(self), start, end) < enough:
            return False
        over(bits_clear, bits_of(self), start, end)
        return True

    def count(self, Py_ssize_t start=0, stop=None):
        """Count the bits set in [start, stop)."""
        cdef size_t end = checked_stop(self, stop)
        check(self, start, self.size + 1)
        return over(bits_count, bits_of(self), start, end)

    def count_rounded(self, Py_ssize_t group, Py_ssize_t enough, Py_ssize_t start=0, stop=None):
        """Count the bits set in [start, stop), and all bits of a group that has at least `enough` of them set.

        A group is a power of two of bits, up to 4096; groups, `start` and `stop` stand at multiples of that. An
        `enough` of 1 counts whole groups, one above `group` the bits alone.
        """
        cdef size_t end = checked_stop(self, stop)
        check(self, start, self.size + 1)
        if not 0 < group <= 4096 or group & (group - 1) or enough < 1:
            raise ValueError(f"a group has a power of two of bits up to 4096, and 1 is enough at least: {group}, {enough}")
        if (<size_t>start | end) & <size_t>(group - 1):
            raise ValueError(f"{start} and {end} must be multiples of {group} bits")
        return count_groups(bits_of(self), start, end, group, enough)

    def find_next_set(self, Py_ssize_t start=0, stop=None):
        """Return the first set bit in [start, stop), -1 if there is none."""
        cdef size_t end = checked_stop(self, stop)
        check(self, start, self.size + 1)
        return find(bits_find_set, bits_of(self), start, end)

    def find_next_clear(self, Py_ssize_t start=0, stop=None):
        """Return the first clear bit in [start, stop), -1 if there is none."""
        cdef size_t end = checked_stop(self, stop)
        check(self, start, self.size + 1)
        return find(bits_find_clear, bits_of(self), start, end)

    def next_dirty_area(self, Py_ssize_t start=0, stop=None, max_count=None):
        """Return (start, count) of the first run of set bits in [start, stop), None if there is none.

        `max_count` ends a longer run early.
        """
        cdef size_t end = checked_stop(self, stop)
        cdef Py_ssize_t most = end if max_count is None else max_count
        cdef Py_ssize_t first, clear
        check(self, start, self.size + 1)
        first = find(bits_find_set, bits_of(self), start, end)
        if max_count is not None and most < 1:
            raise ValueError(f"max_count must be at least 1, not {most}")
        if first < 0:
            return None
        end = min(end, <size_t>first + <size_t>most)
        clear = find(bits_find_clear, bits_of(self), first, end)
        return first, (clear if clear >= 0 else <Py_ssize_t>end) - first

    def take_areas(self, Py_ssize_t start=0, stop=None, Py_ssize_t max_areas=256):
        """Clear the first `max_areas` runs of set bits in [start, stop) and return them in order, as [(start, count)].

        How a bitmap is drained, in lists of bounded length:

            while areas := bitmap.take_areas():
                for start, count in areas:
                    ...                         # clear, then read: a bit set again from here on is in a later list

        No bit is cleared that is not returned. Two threads that take at once may both return a bit.
        """
        cdef size_t end = checked_stop(self, stop), first = start, n = 0, i
        cdef bits_area found[64]
        cdef list areas = []
        check(self, start, self.size + 1)
        if max_areas < 1:
            raise ValueError(f"max_areas must be at least 1, not {max_areas}")
        try:
            while len(areas) < max_areas:
                n = take_some(bits_of(self), first, end, found, min(max_areas - len(areas), 64))
                for i in range(n):
                    areas.append((found[i].start, found[i].stop - found[i].start))
                if n < 64:
                    break
                first = found[n - 1].stop
        except MemoryError:             # nobody will know of them
            for i in range(n):
                over(bits_set, bits_of(self), found[i].start, found[i].stop)
            for first, n in areas:
                over(bits_set, bits_of(self), first, first + n)
            raise
        return areas

    def merge(self, Bitmap other not None, /):
        """Set every bit that is set in `other`, a bitmap of the same length."""
        check_same_size(self, other)
        both(bits_merge, bits_of(self), bits_of(other))

    def take_into(self, Bitmap target not None, /):
        """Move every set bit into `target`, a bitmap of the same length; return how many moved.

        A word is emptied first and then added to the target, so that a bit set again meanwhile is never lost; between
        the two steps its bits are in neither map.
        """
        check_same_size(self, target)
        if target is self:
            raise ValueError("a bitmap cannot be moved into itself")
        return both(bits_move, bits_of(self), bits_of(target))


cdef inline int check(Bitmap bitmap, Py_ssize_t bit, size_t limit) except -1:
    if <size_t>bit >= limit:
        raise IndexError(f"{bit} is outside a bitmap of {bitmap.size} bits")
    return 0


cdef inline size_t checked_stop(Bitmap bitmap, stop) except? 0:
    cdef Py_ssize_t end
    if stop is None:
        return bitmap.size
    end = stop
    check(bitmap, end, bitmap.size + 1)
    return end


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


# ---- the loops, with the GIL held, dropped for long ones; empty ranges are welcome ----

cdef inline Py_ssize_t over(bits_range_fn fn, bits b, size_t start, size_t stop) noexcept:
    return 0 if start >= stop else over_some(fn, &b, start, stop)


cdef inline Py_ssize_t over_some(bits_range_fn fn, const bits* b, size_t start, size_t stop) noexcept:
    cdef Py_ssize_t result
    if (stop - start) // 8 < GIL_NBYTES:
        return fn(b, start, stop)
    with nogil:
        result = fn(b, start, stop)
    return result


cdef inline Py_ssize_t find(bits_range_fn fn, bits b, size_t start, size_t stop) noexcept:
    # What is near is found before the GIL could be dropped.
    cdef size_t near = min(stop, (start + 8 * GIL_NBYTES) & ~<size_t>(GROUP_WORDS * WORD_BITS - 1))
    cdef Py_ssize_t bit
    if start >= stop:
        return -1
    bit = fn(&b, start, near)
    return bit if bit >= 0 or near == stop else over_some(fn, &b, near, stop)


cdef inline Py_ssize_t both(bits_pair_fn fn, bits b, bits other) noexcept:
    cdef Py_ssize_t result
    if b.nwords * sizeof(unsigned long) < GIL_NBYTES:
        return fn(&b, &other)
    with nogil:
        result = fn(&b, &other)
    return result


cdef inline Py_ssize_t count_groups(bits b, size_t start, size_t stop, size_t group, size_t enough) noexcept:
    cdef Py_ssize_t result
    if start >= stop:
        return 0
    if (stop - start) // 8 < GIL_NBYTES:
        return bits_count_rounded(&b, start, stop, group, enough)
    with nogil:
        result = bits_count_rounded(&b, start, stop, group, enough)
    return result


cdef inline size_t take_some(bits b, size_t start, size_t stop, bits_area* areas, size_t most) noexcept:
    cdef size_t n
    if start >= stop or (stop - start) // 8 < GIL_NBYTES:
        return bits_take_areas(&b, start, stop, areas, most)
    with nogil:
        n = bits_take_areas(&b, start, stop, areas, most)
    return n


cdef int check_range(Bitmap bitmap, Py_ssize_t start, Py_ssize_t count) except -1:
    checked_end(bitmap, start, count)
    return 0


cdef int set_bits(Bitmap bitmap, size_t start, size_t stop) except -1:
    over(bits_set, bits_of(bitmap), start, stop)
    return 0


cdef int clear_bits(Bitmap bitmap, size_t start, size_t stop) except -1:
    over(bits_clear, bits_of(bitmap), start, stop)
    return 0


# ---- framing ----

cdef uint8_t* at(buffer, Py_buffer* view, int flags, Py_ssize_t offset, size_t n) except NULL:
    # Where `n` bytes at `offset` stand; the caller releases the view.
    plain_get(buffer, view, flags)
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
    if n * (9 + length) < GIL_NBYTES:
        frame_zero_records(p, sector << SECTOR_BITS, n, text, length)
    else:
        with nogil:
            frame_zero_records(p, sector << SECTOR_BITS, n, text, length)
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
        return run.word & FLAG_MASK, name, run.word >> SECTOR_BITS, run.count, start + <Py_ssize_t>run.nbytes
    finally:
        PyBuffer_Release(&view)


# ---- block I/O ----

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
    plain_get(buffer, &view, PyBUF_WRITABLE)
    try:
        with nogil:
            done = io_pread(fd, <uint8_t*>view.buf, view.len, offset)
        return done
    finally:
        PyBuffer_Release(&view)


def start_writeback(int fd, /):
    """Have the dirty pages of the file `fd` written back, and do not wait for that: sync_file_range. Drops the GIL."""
    with nogil:
        io_start_writeback(fd)


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


class ExtentError(OSError):
    """Of several extents, the one at `offset`, of `nbytes`, cannot be read or written."""


cdef tuple KINDS = ("own", "mapped", "lent", "given", "moved", "piped")


@cython.final
cdef class BlockBuffer:
    """One block, 1 MiB, page aligned: read into, scanned, and sent or stored while it is hot in the cache.

    `payload` is what the block holds now: the own bytes, or, after fill_mapped, those of the mapping. The buffer
    protocol shows the own bytes, writable; after writing there call filled().

    `kind` says what may become of the payload, for as long as the buffer lives:

        own       it is read into the own bytes: for whoever looks at it
        mapped    fill_mapped may show the mapping, whose pages it makes present: for sending copies
        lent      fill_mapped may show the mapping: for sending the pages themselves, see share_pages and PayloadError
        given     sending into a pipe may take it away: for whoever does not look at it again
        moved     storing may take it away: for whoever does not look at it again
        piped     it may also come as pages that nobody has looked at: for whoever only stores it
    """

    def __cinit__(self, str kind="mapped", /):
        if kind not in KINDS:
            raise ValueError(f"a block buffer is one of {', '.join(KINDS)}, not {kind!r}")
        self.which = <payload_kind>KINDS.index(kind)
        if self.which == PAYLOAD_GIVEN:
            self.own = self.gifts = io_alloc_gifts()
        else:
            self.own = io_alloc_pages(BLOCK_SIZE)
        self.pipes = pipes_new()
        self.zero = True

    def __dealloc__(self):
        pipes_free(self.pipes)
        if self.gifts == NULL:
            free(self.own)
        io_free_gifts(self.gifts)

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.busy and not (self.sending and self.gifts == NULL):
            raise BufferError("the block is in use in another thread: one at a time")
        renew(self)
        if pipes_held(self.pipes):
            pipes_read(self.pipes, self.own)
        PyBuffer_FillInfo(view, self, self.own, BLOCK_SIZE, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* view):
        self.exports -= 1

    @property
    def is_zero(self):
        """Whether the last fill, fill_mapped or filled found only zeros."""
        return self.zero

    def expect(self):
        """Say that somebody is to fill the block: `given`, the bytes of the last fill or filled, is -1 until then."""
        self.given = -1

    @property
    def has_pages(self):
        """Whether the payload came as pages that nobody has looked at."""
        return pipes_held(self.pipes)

    @property
    def kind(self):
        """What may become of the payload."""
        return KINDS[self.which]

    @property
    def is_movable(self):
        """Whether storing the payload may take it away."""
        return self.which >= PAYLOAD_MOVED

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
        forget_block(self, nbytes)
        self.busy = True
        try:
            with nogil:
                read_rest(self, fd, offset, 0, nbytes)
        finally:
            self.busy = False
        return self.zero

    def fill_mapped(self, Mapping mapping not None, int fd, int64_t offset, Py_ssize_t nbytes, /):
        """Do what fill does, but show the mapping's pages instead of a copy if the block is data.

        `mapping` maps the file `fd`. The first 4 KiB decide: if they are not zero the block is data, its pages are made
        present without touching them, and it is not scanned. Wherever that fails it is filled by reading.
        """
        read_block_mapped(self, mapping, fd, offset, nbytes)
        return self.zero

    def filled(self, Py_ssize_t nbytes, /):
        """Say that `nbytes` were written to `data`: put zeros behind them, scan, and tell whether all is zero."""
        forget_block(self, nbytes)
        self.busy = True
        with nogil:
            finish(self, nbytes)
        self.busy = False
        return self.zero

    def fill_extents(self, int fd, list extents not None, /):
        """Read `extents`, each (offset, nbytes), one behind the other; zeros where the file has ended.

        1 to 256 extents, 1 MiB together. Nobody looks for zeros: `is_zero` is False afterwards. Drops the GIL once.
        ExtentError says which one cannot be read; the contents are undefined then.
        """
        cdef uint64_t pairs[2 * FRAME_EXTENTS_MAX]
        cdef size_t n = extents_of(extents, pairs), done = 0
        forget_block(self, BLOCK_SIZE)
        self.zero = False
        self.busy = True
        try:
            with nogil:
                io_pread_extents(fd, self.own, pairs, n, &done)
        except OSError as error:
            raise extent_error(error, pairs + 2 * done) from error
        finally:
            self.busy = False

    def store_extents(self, int fd, list extents not None, /):
        """Write `extents`, each (offset, nbytes), from the payload, where they are one behind the other.

        As fill_extents. After an error some of them are written, maybe a part of one.
        """
        cdef uint64_t pairs[2 * FRAME_EXTENTS_MAX]
        cdef size_t n = extents_of(extents, pairs), done = 0
        begin_block(self)
        try:
            take_block_back(self)
            with nogil:
                io_pwrite_extents(fd, self.own, pairs, n, &done)
        except OSError as error:
            raise extent_error(error, pairs + 2 * done) from error
        finally:
            self.busy = False

    def gathered(self):
        """Say that extents were written to `data`, one behind the other. Nobody looks for zeros: `is_zero` is False."""
        forget_block(self, BLOCK_SIZE)
        self.zero = False

    def store(self, int fd, int64_t offset, Py_ssize_t nbytes, /):
        """Write the first `nbytes` at `offset`. Drops the GIL. After an error an unknown part of it is written."""
        check_nbytes(nbytes)
        begin_block(self)
        try:
            take_block_back(self)
            with nogil:
                io_pwrite(fd, self.own, nbytes, offset)
        finally:
            self.busy = False

    def store_sparse(
        self, int fd, int64_t offset, Py_ssize_t nbytes, Py_ssize_t cluster, bint punch, bint allocate=False,
        size_t places=4, /
    ):
        """Write the clusters of the first `nbytes` that are not zero at `offset`; return the bytes written.

        Clusters begin at multiples of `cluster` in the target. Zero ones are skipped, or with `punch` made holes, and
        written where holes are not supported; they do not extend the file. A payload that came as pages is stored whole
        and then punched, if a look at `places` of `fd`, which must be readable, finds zeros. `allocate` has the file
        system allocate what is written first, which is faster where there are holes. Drops the GIL.
        """
        cdef size_t written
        check_nbytes(nbytes)
        if cluster < 1:
            raise ValueError(f"a cluster must have at least one byte, not {cluster}")
        begin_block(self)
        try:
            if punch and nbytes == BLOCK_SIZE and pipes_held(self.pipes):
                with nogil:
                    written = store_payload(self.pipes, self.own, fd, offset, cluster, allocate, places)
                return written
            take_block_back(self)
            with nogil:
                written = io_store_sparse(fd, self.own, nbytes, offset, cluster, punch, allocate, NULL)
            return written
        finally:
            self.busy = False


cdef inline int finish(BlockBuffer blk, size_t nbytes) noexcept nogil:
    memset(blk.own + nbytes, 0, BLOCK_SIZE - nbytes)
    blk.zero = buffer_is_zero_c(blk.own, BLOCK_SIZE)
    return 0


cdef int read_rest(BlockBuffer blk, int fd, int64_t offset, size_t done, size_t nbytes) except -1 nogil:
    done += io_pread(fd, blk.own + done, nbytes - done, offset + <int64_t>done)
    return finish(blk, done)


cdef int read_block_mapped(BlockBuffer blk, Mapping mapping, int fd, int64_t offset, Py_ssize_t nbytes) except -1:
    cdef bint mapped = False, mappable = (
        PAYLOAD_MAPPED <= blk.which <= PAYLOAD_LENT and nbytes == BLOCK_SIZE and not mapping.closed and offset >= 0
        and mapping.length >= BLOCK_SIZE and <size_t>offset <= mapping.length - BLOCK_SIZE)
    forget_block(blk, nbytes)
    blk.busy = True
    try:
        with nogil:
            mapped = read_or_map(blk, mapping.base if mappable else NULL, fd, offset, nbytes)
    finally:
        blk.busy = False
    if mapped:
        blk.mapping = mapping
        blk.offset = offset
    return 0


cdef bint read_or_map(BlockBuffer blk, uint8_t* base, int fd, int64_t offset, size_t nbytes) except -1 nogil:
    cdef size_t probed = min(nbytes, <size_t>4096)
    cdef size_t got = io_pread(fd, blk.own, probed, offset)
    if base != NULL and not buffer_is_zero_c(blk.own, got) and (
            blk.which == PAYLOAD_LENT or io_populate(base + offset, BLOCK_SIZE)):
        blk.zero = False
        return True
    read_rest(blk, fd, offset, got, nbytes)
    return False


cdef int begin_block(BlockBuffer blk) except -1:
    # Have the block for this thread alone; `busy` is to be False again when it has the GIL again.
    if blk.busy:
        raise RuntimeError("the block is in use in another thread: one at a time")
    blk.busy = True
    return 0


cdef int renew(BlockBuffer blk) except -1:
    # Have own bytes that nobody else sees, for whoever may write them: the other half, or new pages for both.
    cdef uint8_t* half = blk.gifts + BLOCK_SIZE
    if blk.gave:
        if blk.own == half:
            io_renew_gifts(blk.gifts)
        blk.own = blk.gifts if blk.own == half else half
        blk.gave = False
    return 0


cdef int forget_block(BlockBuffer blk, Py_ssize_t nbytes) except -1:
    # Drop the payload, wherever it is, for so many bytes to come.
    check_nbytes(nbytes)
    begin_block(blk)
    blk.busy = False                # nobody comes in between: the GIL is held until the caller says busy
    renew(blk)
    blk.mapping = None
    blk.given = nbytes
    if pipes_held(blk.pipes):
        pipes_close(blk.pipes)
    return 0


cdef int take_block_back(BlockBuffer blk) except -1:
    # Make the payload the own bytes, when busy: for whoever must touch it, and for sends that met a hole in the mapping.
    if pipes_held(blk.pipes):
        with nogil:
            pipes_read(blk.pipes, blk.own)
    cdef Mapping mapping = blk.mapping
    if mapping is not None:
        blk.mapping = None
        with nogil:
            read_rest(blk, mapping.fd, blk.offset, 0, BLOCK_SIZE)
    return 0


cdef Py_ssize_t store_payload(
    pipes* pipes, uint8_t* own, int fd, int64_t offset, size_t cluster, bint allocate, size_t places
) except -1 nogil:
    # Store a whole block, with zero clusters as holes; without a `cluster` all of it, which must be in `own`.
    if pipes_held(pipes):
        return pipes_store(pipes, fd, BLOCK_SIZE, offset, cluster, allocate, places, own)
    if cluster:
        return io_store_sparse(fd, own, BLOCK_SIZE, offset, cluster, True, allocate, NULL)
    io_pwrite(fd, own, BLOCK_SIZE, offset)
    return BLOCK_SIZE


cdef size_t extents_of(list extents, uint64_t* pairs) except 0:
    # Put the extents into `pairs`, which has room for FRAME_EXTENTS_MAX of them; how many.
    cdef size_t n = 0, total = 0
    if not 1 <= len(extents) <= FRAME_EXTENTS_MAX:
        raise ValueError(f"1 to {FRAME_EXTENTS_MAX} extents go together, not {len(extents)}")
    for offset, nbytes in tuple(extents):   # a number's __index__ may make the list longer
        pairs[2 * n] = offset
        pairs[2 * n + 1] = nbytes
        if pairs[2 * n + 1] > BLOCK_SIZE - total or pairs[2 * n] > <uint64_t>INT64_MAX - pairs[2 * n + 1]:
            raise ValueError(f"extents have at most {BLOCK_SIZE} bytes together, and lie below 2^63: {extents}")
        total += pairs[2 * n + 1]
        n += 1
    return n


cdef object extent_error(error, const uint64_t* pair):
    failed = ExtentError(error.errno, error.strerror)
    failed.offset, failed.nbytes = pair[0], pair[1]
    return failed


cdef int check_nbytes(Py_ssize_t nbytes) except -1:
    if not 0 <= nbytes <= BLOCK_SIZE:
        raise ValueError(f"a block holds 0 to {BLOCK_SIZE} bytes, not {nbytes}")
    return 0
