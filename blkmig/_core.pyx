# SPDX-License-Identifier: GPL-2.0-or-later
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The verbs: is it zero, bitmaps, big-endian framing, block buffers, block I/O. Knows no policy.

Data crosses this border one block at a time, metadata one run at a time, bits and bytes never in a loop.
Buffers are anything C-contiguous. System calls run without the GIL, go on after EINTR (running Python's signal
handlers) and after short counts, and raise OSError with the errno. Classes that hold a position or a payload
(BlockBuffer, OutputBuffer, InputBuffer) belong to one thread at a time; Bitmap and Mapping may be shared.
"""

import os

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.buffer cimport PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_CheckExact, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EFAULT, EINTR, EINVAL, ENODEV, ENOSYS, ENXIO, EOPNOTSUPP, EPERM, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset


cdef extern from "_zero.h":
    ctypedef int (*zero_kernel_fn)(const uint8_t*, size_t) noexcept nogil
    struct zero_kernel_entry "zero_kernel":
        const char* name
        zero_kernel_fn fn
    zero_kernel_entry* zero_kernels_built
    int zero_kernels_built_count
    zero_kernel_fn zero_chosen
    void zero_detect() noexcept nogil
    bint zero_sample(const uint8_t*, size_t) noexcept nogil
    bint zero_run(zero_kernel_fn, const void*, size_t) noexcept nogil

cdef extern from "_bits.h":
    struct bits:
        unsigned long* words
        uint8_t* summary
        uint8_t* sweeping
        size_t nwords
        bint summed
    Py_ssize_t bits_find_set(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_find_clear(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_count(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_set(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_clear(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_take(const bits*, size_t start, size_t stop) noexcept nogil
    void bits_merge(const bits*, const bits* other) noexcept nogil
    size_t bits_move(const bits*, const bits* target) noexcept nogil
    void bits_summarise(const bits*) noexcept nogil

ctypedef Py_ssize_t (*bits_fn)(const bits*, size_t start, size_t stop) noexcept nogil

cdef extern from "_frame.h":
    struct frame_run:
        uint64_t word
        size_t count
        const char* name
        size_t length
        size_t nbytes
    size_t frame_head(uint8_t*, uint64_t word, const char* name, size_t length) noexcept nogil
    void frame_zero_records(uint8_t*, uint64_t word, size_t count, const char* name, size_t length) noexcept nogil
    frame_run frame_parse(const uint8_t*, size_t) noexcept nogil

cdef extern from "_io.h":
    enum: SPEAKS_SOCKET, SPEAKS_PIPE, SPEAKS_FILE
    struct iovec:
        void* iov_base
        size_t iov_len
    int io_kind(int fd) noexcept nogil
    Py_ssize_t io_write(int fd, int kind, iovec*, int) noexcept nogil
    Py_ssize_t io_read(int fd, int kind, iovec*, int) noexcept nogil
    int io_wait(int fd, int wake_fd, bint output) noexcept nogil
    Py_ssize_t io_pread(int fd, void*, size_t, int64_t) noexcept nogil
    Py_ssize_t io_pwrite(int fd, const void*, size_t, int64_t) noexcept nogil
    int io_punch_hole(int fd, int64_t, int64_t) noexcept nogil
    int io_zero_range(int fd, int64_t, int64_t) noexcept nogil
    int io_zero_out(int fd, uint64_t, uint64_t) noexcept nogil
    int64_t io_seek_data(int fd, int64_t) noexcept nogil
    int64_t io_seek_hole(int fd, int64_t) noexcept nogil
    void* io_map(int fd, size_t) noexcept nogil
    void io_unmap(void*, size_t) noexcept nogil
    int io_populate(uint8_t*, size_t) noexcept nogil
    void* io_alloc_pages(size_t) noexcept nogil


cdef enum:
    NOGIL_NBYTES = 65536            # dropping the GIL costs 50 ns: not for less than this
    GIL_BITS = 8 * 65536
    HEADER_MAX = 8 + 1 + 255        # word, length byte, name
    READ_AHEAD = 512                # bytes taken behind a payload: the next headers, no more, since they are copied

globals().update(
    BLOCK_SIZE=BLOCK_SIZE,
    SECTOR_SIZE=SECTOR_SIZE,
    SECTOR_BITS=SECTOR_BITS,
    SECTORS_PER_BLOCK=SECTORS_PER_BLOCK,
    FLAG_DEVICE_BLOCK=FLAG_DEVICE_BLOCK,
    FLAG_EOS=FLAG_EOS,
    FLAG_PROGRESS=FLAG_PROGRESS,
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


cdef bint scan(zero_kernel_fn kernel, const uint8_t* p, size_t n):
    cdef bint zero
    if n < NOGIL_NBYTES:
        return zero_run(kernel, p, n)
    if not zero_sample(p, n):       # most data ends here, before the GIL is touched
        return False
    with nogil:
        zero = zero_run(kernel, p, n)
    return zero


def buffer_is_zero(buffer, /):
    """Tell whether every byte of `buffer` is 0; an empty buffer is.

    Any contiguous buffer of any length and alignment. Stops at the first 512 bytes that are not zero; drops the GIL
    from 64 KiB on.
    """
    cdef Py_buffer view
    if PyBytes_CheckExact(buffer):
        return scan(zero_chosen, <const uint8_t*>PyBytes_AS_STRING(buffer), PyBytes_GET_SIZE(buffer))
    if PyByteArray_CheckExact(buffer) and PyByteArray_GET_SIZE(buffer) < NOGIL_NBYTES:
        return zero_run(zero_chosen, PyByteArray_AS_STRING(buffer), PyByteArray_GET_SIZE(buffer))
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        return scan(zero_chosen, <const uint8_t*>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


def buffer_is_zero_using(str kernel not None, buffer, /):
    """Do what buffer_is_zero does, with one of `zero_kernels`. ValueError for one that is unknown or not for this CPU."""
    cdef zero_kernel_fn fn = find_zero_kernel(kernel)
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        return scan(fn, <const uint8_t*>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


# ---- bitmap ----

@cython.final
cdef class Bitmap:
    """`nbits` bits in unsigned-long words, all clear at first; the bits behind the last are always 0.

    set, clear, take, the ranges, merge and take_into may run in any threads at once: each changes a word in one
    atomic step. Searches and counts see every bit that was set before they began and not taken meanwhile.

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
        self.words = <unsigned long*>calloc(max(self.nwords, <size_t>1), sizeof(unsigned long))
        self.summary = <uint8_t*>calloc(((self.nwords // <size_t>GROUP_WORDS) | 7) + 1, 1)
        if self.words == NULL or self.summary == NULL:
            raise MemoryError(f"no memory for a bitmap of {nbits} bits")

    def __dealloc__(self):
        free(self.words)
        free(self.summary)

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer* view, int flags):
        cdef Py_ssize_t* shape = <Py_ssize_t*>malloc(2 * sizeof(Py_ssize_t))
        if shape == NULL:
            raise MemoryError
        shape[0] = self.nwords
        shape[1] = sizeof(unsigned long)
        view.obj = self
        view.buf = self.words
        view.len = self.nwords * sizeof(unsigned long)
        view.itemsize = sizeof(unsigned long)
        view.readonly = 0
        view.ndim = 1
        view.format = NULL
        if flags & PyBUF_FORMAT:
            view.format = <char*>b"L"
        view.shape = shape if flags & PyBUF_ND else NULL
        view.strides = shape + 1 if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        view.suboffsets = NULL
        view.internal = shape
        self.exports += 1
        self.stale = True

    def __releasebuffer__(self, Py_buffer* view):
        free(view.internal)
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
        over(bits_set, self, start, checked_end(self, start, count))

    def clear_range(self, Py_ssize_t start, Py_ssize_t count, /):
        """Clear `count` bits from `start`."""
        over(bits_clear, self, start, checked_end(self, start, count))

    def take_range(self, Py_ssize_t start, Py_ssize_t count, /):
        """Clear `count` bits from `start`, word by word, and tell whether any was set."""
        return over(bits_take, self, start, checked_end(self, start, count)) != 0

    def count(self, Py_ssize_t start=0, stop=None):
        """Count the bits set in [start, stop)."""
        return over(bits_count, self, checked(self, start, self.size + 1), checked_stop(self, stop))

    def find_next_set(self, Py_ssize_t start=0, stop=None):
        """Return the first set bit in [start, stop), -1 if there is none."""
        return find(bits_find_set, self, checked(self, start, self.size + 1), checked_stop(self, stop))

    def find_next_clear(self, Py_ssize_t start=0, stop=None):
        """Return the first clear bit in [start, stop), -1 if there is none."""
        return find(bits_find_clear, self, checked(self, start, self.size + 1), checked_stop(self, stop))

    def next_dirty_area(self, Py_ssize_t start=0, stop=None, max_count=None):
        """Return (start, count) of the first run of set bits in [start, stop), None if there is none.

        `max_count` ends a longer run early.
        """
        cdef size_t end = checked_stop(self, stop)
        cdef Py_ssize_t most = end if max_count is None else max_count
        cdef Py_ssize_t first = find(bits_find_set, self, checked(self, start, self.size + 1), end), clear
        if max_count is not None and most < 1:
            raise ValueError(f"max_count must be at least 1, not {most}")
        if first < 0:
            return None
        end = min(end, <size_t>first + <size_t>most)
        clear = find(bits_find_clear, self, first, end)
        return first, (clear if clear >= 0 else <Py_ssize_t>end) - first

    def merge(self, Bitmap other not None, /):
        """Set every bit that is set in `other`, a bitmap of the same length."""
        cdef bits to = bits_of(self), source = bits_of(other)
        check_same_size(self, other)
        if self.size <= GIL_BITS:
            bits_merge(&to, &source)
            return
        with nogil:
            bits_merge(&to, &source)

    def take_into(self, Bitmap target not None, /):
        """Move every set bit into `target`, a bitmap of the same length; return how many moved.

        A word is emptied first and then added to the target, so that a bit set again meanwhile is never lost; between
        the two steps its bits are in neither map.
        """
        cdef bits source = bits_of(self), to = bits_of(target)
        cdef size_t moved
        check_same_size(self, target)
        if target is self:
            raise ValueError("a bitmap cannot be moved into itself")
        if self.size <= GIL_BITS:
            return bits_move(&source, &to)
        with nogil:
            moved = bits_move(&source, &to)
        return moved


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


cdef Py_ssize_t over(bits_fn fn, Bitmap bitmap, size_t start, size_t stop) noexcept:
    cdef bits all = bits_of(bitmap)
    cdef Py_ssize_t result
    if start >= stop:
        return 0
    if stop - start <= GIL_BITS:
        return fn(&all, start, stop)
    with nogil:
        result = fn(&all, start, stop)
    return result


cdef Py_ssize_t find(bits_fn fn, Bitmap bitmap, size_t start, size_t stop) noexcept:
    # What is near is found before the GIL could be dropped.
    cdef bits all = bits_of(bitmap)
    cdef Py_ssize_t bit
    cdef size_t near = min(stop, (start + GIL_BITS) & ~<size_t>(GROUP_WORDS * WORD_BITS - 1))
    if start >= stop:
        return -1
    bit = fn(&all, start, near)
    if bit >= 0 or near == stop:
        return bit
    with nogil:
        bit = fn(&all, near, stop)
    return bit


# ---- big-endian framing ----

cdef uint8_t* writable(object buffer, Py_buffer* view, Py_ssize_t offset, size_t n) except NULL:
    # `n` bytes at `offset` for writing; the caller releases the view.
    PyObject_GetBuffer(buffer, view, PyBUF_WRITABLE)
    if offset < 0 or offset > view.len or n > <size_t>(view.len - offset):
        PyBuffer_Release(view)
        raise IndexError(f"{n} bytes at offset {offset} are not inside a buffer of {view.len} bytes")
    return <uint8_t*>view.buf + offset


cdef const uint8_t* readable(object buffer, Py_buffer* view, Py_ssize_t offset, size_t n) except NULL:
    PyObject_GetBuffer(buffer, view, PyBUF_SIMPLE)
    if offset < 0 or offset > view.len or n > <size_t>(view.len - offset):
        PyBuffer_Release(view)
        raise IndexError(f"{n} bytes at offset {offset} are not inside a buffer of {view.len} bytes")
    return <const uint8_t*>view.buf + offset


def put_byte(buffer, Py_ssize_t offset, uint8_t value, /):
    """Write an 8-bit number at `offset`; return the offset behind it."""
    cdef Py_buffer view
    writable(buffer, &view, offset, 1)[0] = value
    PyBuffer_Release(&view)
    return offset + 1


def put_be16(buffer, Py_ssize_t offset, uint16_t value, /):
    """Write a 16-bit number, big-endian, at `offset`; return the offset behind it."""
    cdef Py_buffer view
    store_be16(writable(buffer, &view, offset, 2), value)
    PyBuffer_Release(&view)
    return offset + 2


def put_be32(buffer, Py_ssize_t offset, uint32_t value, /):
    """Write a 32-bit number, big-endian, at `offset`; return the offset behind it."""
    cdef Py_buffer view
    store_be32(writable(buffer, &view, offset, 4), value)
    PyBuffer_Release(&view)
    return offset + 4


def put_be64(buffer, Py_ssize_t offset, uint64_t value, /):
    """Write a 64-bit number, big-endian, at `offset`; return the offset behind it."""
    cdef Py_buffer view
    store_be64(writable(buffer, &view, offset, 8), value)
    PyBuffer_Release(&view)
    return offset + 8


def get_byte(buffer, Py_ssize_t offset, /):
    """Read the 8-bit number at `offset`."""
    cdef Py_buffer view
    cdef uint8_t value = readable(buffer, &view, offset, 1)[0]
    PyBuffer_Release(&view)
    return value


def get_be16(buffer, Py_ssize_t offset, /):
    """Read the 16-bit big-endian number at `offset`."""
    cdef Py_buffer view
    cdef uint16_t value = load_be16(readable(buffer, &view, offset, 2))
    PyBuffer_Release(&view)
    return value


def get_be32(buffer, Py_ssize_t offset, /):
    """Read the 32-bit big-endian number at `offset`."""
    cdef Py_buffer view
    cdef uint32_t value = load_be32(readable(buffer, &view, offset, 4))
    PyBuffer_Release(&view)
    return value


def get_be64(buffer, Py_ssize_t offset, /):
    """Read the 64-bit big-endian number at `offset`."""
    cdef Py_buffer view
    cdef uint64_t value = load_be64(readable(buffer, &view, offset, 8))
    PyBuffer_Release(&view)
    return value


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
    if count and (count - 1 > (<uint64_t>-1 >> SECTOR_BITS) // SECTORS_PER_BLOCK
                  or (sector + (count - 1) * SECTORS_PER_BLOCK) >> (64 - SECTOR_BITS)):
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
    p = writable(buffer, &view, offset, 9 + length)
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
    if n > <size_t>-1 // HEADER_MAX:
        raise IndexError(f"{count} records are more than any buffer holds")
    p = writable(buffer, &view, offset, n * (9 + length))
    if n * (9 + length) < NOGIL_NBYTES:
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
    p = readable(buffer, &view, start, stop - start)
    try:
        if stop - start < NOGIL_NBYTES:
            run = frame_parse(p, stop - start)
        else:
            with nogil:
                run = frame_parse(p, stop - start)
        if run.nbytes == 0:
            return None
        return (
            run.word & (SECTOR_SIZE - 1),
            PyBytes_FromStringAndSize(run.name, run.length),
            run.word >> SECTOR_BITS,
            run.count,
            start + <Py_ssize_t>run.nbytes,
        )
    finally:
        PyBuffer_Release(&view)


# ---- system calls ----

cdef int fail(int error) except -1 with gil:
    global errno
    errno = error
    PyErr_SetFromErrno(OSError)
    return -1


cdef int check_signals() except -1 with gil:
    return PyErr_CheckSignals()


cdef int again() except -1 nogil:
    # After a call failed: 0 if it was only interrupted, else its error.
    if errno == EINTR:
        return check_signals()
    return fail(errno)


cdef Py_ssize_t pread_loop(int fd, uint8_t* p, size_t n, int64_t offset) except -1 nogil:
    # Bytes read: n, or fewer at the end of the file.
    cdef size_t done = 0
    cdef Py_ssize_t got
    while done < n:
        got = io_pread(fd, p + done, n - done, offset + <int64_t>done)
        if got < 0:
            again()
        elif got == 0:
            break
        else:
            done += got
    return done


cdef int pwrite_loop(int fd, const uint8_t* p, size_t n, int64_t offset) except -1 nogil:
    cdef size_t done = 0
    cdef Py_ssize_t put
    while done < n:
        put = io_pwrite(fd, p + done, n - done, offset + <int64_t>done)
        if put < 0:
            again()
        else:
            done += put
    return 0


def next_data(int fd, int64_t offset, int64_t size, /):
    """Return [start, end) of the next stretch of data at or behind `offset` in the first `size` bytes, or None.

    Where the file system cannot tell, all is data: (offset, size). Moves the file's own position. Drops the GIL.
    """
    cdef int64_t start, end = -1
    if offset >= size:
        return None
    with nogil:
        start = io_seek_data(fd, offset)
        if start >= 0:
            end = io_seek_hole(fd, start)
    if end >= 0:
        return (start, min(end, size)) if start < size else None
    if errno == ENXIO:
        return None
    if errno in (EINVAL, EOPNOTSUPP):
        return offset, size
    fail(errno)


def punch_hole(int fd, int64_t offset, int64_t nbytes, /):
    """Make [offset, offset + nbytes) a hole that reads as zeros; the file's size stays. OSError where it cannot."""
    with nogil:
        while io_punch_hole(fd, offset, nbytes) < 0:
            again()


def zero_range(int fd, int64_t offset, int64_t nbytes, /):
    """Zero [offset, offset + nbytes) and keep it allocated; the file's size stays. OSError where it cannot."""
    with nogil:
        while io_zero_range(fd, offset, nbytes) < 0:
            again()


def zero_out(int fd, uint64_t offset, uint64_t nbytes, /):
    """Zero [offset, offset + nbytes) of a block device (BLKZEROOUT). OSError where it cannot."""
    with nogil:
        while io_zero_out(fd, offset, nbytes) < 0:
            again()


def pread_full(int fd, buffer, int64_t offset, /):
    """Read at `offset` until `buffer` is full or the file ends; return the bytes read. Drops the GIL."""
    cdef Py_buffer view
    cdef Py_ssize_t done
    PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
    try:
        with nogil:
            done = pread_loop(fd, <uint8_t*>view.buf, view.len, offset)
        return done
    finally:
        PyBuffer_Release(&view)


def pwrite_full(int fd, buffer, int64_t offset, /):
    """Write all of `buffer` at `offset`. Drops the GIL. After an error an unknown part of it is written."""
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            pwrite_loop(fd, <const uint8_t*>view.buf, view.len, offset)
    finally:
        PyBuffer_Release(&view)


# ---- blocks ----

@cython.final
cdef class Mapping:
    """The first `size` bytes of a regular file, mapped shared and read-only.

    The buffer protocol shows them. Where the file has been truncated, touching them is a SIGBUS, so hand them to
    system calls only, which answer EFAULT. close() is final for new users; the pages go when the last view or
    BlockBuffer that shows them lets go.
    """

    cdef uint8_t* base
    cdef size_t length
    cdef bint closed

    def __cinit__(self, int fd, Py_ssize_t size, /):
        if size < 0:
            raise ValueError(f"a mapping cannot have {size} bytes")
        if size:
            self.base = <uint8_t*>io_map(fd, size)
            if self.base == NULL:
                fail(errno)
        self.length = size

    def __dealloc__(self):
        if self.base != NULL:
            io_unmap(self.base, self.length)

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.closed:
            raise ValueError("the mapping is closed")
        PyBuffer_FillInfo(view, self, self.base, self.length, 1, flags)

    @property
    def size(self):
        """Bytes mapped."""
        return self.length

    def close(self):
        """Accept no new users. Safe twice."""
        self.closed = True


@cython.final
cdef class BlockBuffer:
    """One block, 1 MiB, page aligned: read into, scanned, and sent or stored while it is hot in the cache.

    `payload` is what the block holds now: the own bytes, or, after fill_mapped, those of the mapping. The buffer
    protocol shows the own bytes, writable; after writing there call filled().
    """

    cdef uint8_t* own               # BLOCK_SIZE bytes
    cdef bint zero                  # all of the payload is zero, as far as a scan has told
    cdef Mapping mapping            # None: the payload is `own`
    cdef int fd                     # where a mapped payload comes from, and can be read again
    cdef int64_t offset

    def __cinit__(self):
        self.own = <uint8_t*>io_alloc_pages(BLOCK_SIZE)
        if self.own == NULL:
            raise MemoryError("no memory for a block of 1 MiB")
        self.zero = True

    def __dealloc__(self):
        free(self.own)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.own, BLOCK_SIZE, 0, flags)

    @property
    def is_zero(self):
        """Whether the last fill, fill_mapped or filled found only zeros."""
        return self.zero

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
        check_nbytes(nbytes)
        self.mapping = None
        with nogil:
            self.read(fd, offset, 0, nbytes)
        return self.zero

    def fill_mapped(self, Mapping mapping not None, int fd, int64_t offset, Py_ssize_t nbytes, /):
        """Do what fill does, but show the mapping's pages instead of a copy if the block is data.

        `mapping` maps the file `fd`, which must stay open until the payload is sent. The first 4 KiB decide: if they
        are not zero the block is data, its pages are made present without touching them, and it is not scanned. Wherever that fails, it
        is filled by reading.
        """
        cdef bint mappable, mapped = False
        check_nbytes(nbytes)
        mappable = (nbytes == BLOCK_SIZE and not mapping.closed and offset >= 0 and mapping.length >= BLOCK_SIZE
                    and <size_t>offset <= mapping.length - BLOCK_SIZE)
        self.mapping = None
        with nogil:
            mapped = self.read_or_map(mapping.base if mappable else NULL, fd, offset, nbytes)
        if mapped:
            self.mapping = mapping
            self.fd = fd
            self.offset = offset
        return self.zero

    def filled(self, Py_ssize_t nbytes, /):
        """Say that `nbytes` were written to `data`: put zeros behind them, scan, and tell whether all is zero."""
        check_nbytes(nbytes)
        self.mapping = None
        with nogil:
            self.finish(nbytes)
        return self.zero

    def store(self, int fd, int64_t offset, Py_ssize_t nbytes, /):
        """Write the first `nbytes` at `offset`. Drops the GIL. After an error an unknown part of it is written."""
        check_nbytes(nbytes)
        self.unmap()
        with nogil:
            pwrite_loop(fd, self.own, nbytes, offset)

    def store_sparse(self, int fd, int64_t offset, Py_ssize_t nbytes, Py_ssize_t cluster, bint punch, /):
        """Write the clusters of the first `nbytes` that are not zero at `offset`; return the bytes written.

        Clusters are those of the target: they begin at multiples of `cluster` there. Zero ones are skipped, for targets known to be
        zero, or with `punch` made holes, and written where holes are not supported. The size of the file is the
        caller's: skipped and punched clusters do not extend it. Drops the GIL.
        """
        cdef size_t written
        check_nbytes(nbytes)
        if cluster < 1:
            raise ValueError(f"a cluster must have at least one byte, not {cluster}")
        if offset < 0:
            raise ValueError(f"offset {offset} is negative")
        self.unmap()
        with nogil:
            written = store_clusters(self.own, fd, offset, nbytes, cluster, punch)
        return written

    cdef int finish(self, size_t nbytes) noexcept nogil:
        memset(self.own + nbytes, 0, BLOCK_SIZE - nbytes)
        self.zero = buffer_is_zero_c(self.own, BLOCK_SIZE)
        return 0

    cdef int read(self, int fd, int64_t offset, size_t done, size_t nbytes) except -1 nogil:
        done += pread_loop(fd, self.own + done, nbytes - done, offset + <int64_t>done)
        return self.finish(done)

    cdef bint read_or_map(self, uint8_t* base, int fd, int64_t offset, size_t nbytes) except -1 nogil:
        cdef size_t probed = min(nbytes, <size_t>4096)
        cdef size_t got = pread_loop(fd, self.own, probed, offset)
        if got < probed:
            self.finish(got)
            return False
        if base != NULL and not buffer_is_zero_c(self.own, probed) and io_populate(base + offset, BLOCK_SIZE) == 0:
            self.zero = False
            return True
        self.read(fd, offset, probed, nbytes)
        return False

    cdef int unmap(self) except -1:
        # Make the payload the own bytes: for whoever must touch it, and for sends that met a hole in the mapping.
        if self.mapping is None:
            return 0
        self.mapping = None
        with nogil:
            self.read(self.fd, self.offset, 0, BLOCK_SIZE)
        return 0


cdef int check_nbytes(Py_ssize_t nbytes) except -1:
    if not 0 <= nbytes <= BLOCK_SIZE:
        raise ValueError(f"a block holds 0 to {BLOCK_SIZE} bytes, not {nbytes}")
    return 0


cdef Py_ssize_t store_clusters(
    const uint8_t* p, int fd, int64_t offset, size_t nbytes, size_t cluster, bint punch
) except -1 nogil:
    cdef size_t start = 0, stop = 0, end, written = 0
    cdef bint zero = False, next_zero
    # Invariant: [0, start) is done, [start, stop) is one run of clusters, all zero or none.
    while start < nbytes:
        next_zero = zero
        while stop < nbytes:
            end = min(nbytes, stop + cluster - <size_t>offset_in(offset + <int64_t>stop, cluster))
            next_zero = buffer_is_zero_c(p + stop, end - stop)
            if stop == start:
                zero = next_zero
            elif next_zero != zero:
                break
            stop = end
        if zero and punch:
            punch = punch_run(fd, offset + <int64_t>start, stop - start)
            zero = punch
        if not zero:
            pwrite_loop(fd, p + start, stop - start, offset + <int64_t>start)
            written += stop - start
        start = stop
    return written


cdef inline size_t offset_in(int64_t offset, size_t cluster) noexcept nogil:
    return <uint64_t>offset % cluster


cdef bint punch_run(int fd, int64_t offset, size_t nbytes) except -1 nogil:
    # Whether holes are supported here.
    while io_punch_hole(fd, offset, nbytes) < 0:
        if errno in (EOPNOTSUPP, ENOSYS, ENODEV, EINVAL, EPERM):
            return False
        again()
    return True


# ---- the stream ----

@cython.final
cdef class OutputBuffer:
    """Bytes on their way into `fd`, a socket, a pipe or a file: what is small is staged, payloads leave at once.

        position - flushed bytes are staged:   [..... head ====== tail .....]

    A wait for the other side ends with OSError(ECANCELED) when `wake_fd` becomes readable; to be woken in a pipe, `fd`
    must be non-blocking. A broken peer is EPIPE, never SIGPIPE. After an error the stream is dead. The fds stay the caller's.
    """

    cdef int fd, wake_fd, kind
    cdef uint8_t* staging
    cdef size_t capacity, head, tail
    cdef readonly uint64_t position     # bytes put
    cdef readonly uint64_t flushed      # bytes the kernel took

    def __cinit__(self, int fd, Py_ssize_t capacity=65536, /, *, int wake_fd=-1):
        self.staging = alloc_staging(capacity)
        self.capacity = capacity
        self.fd = fd
        self.wake_fd = wake_fd
        self.kind = checked_kind(fd)

    def __dealloc__(self):
        free(self.staging)

    def put_byte(self, uint8_t value, /):
        """Put an 8-bit number."""
        self.reserve(1)[0] = value
        self.staged(1)

    def put_be16(self, uint16_t value, /):
        """Put a 16-bit number, big-endian."""
        store_be16(self.reserve(2), value)
        self.staged(2)

    def put_be32(self, uint32_t value, /):
        """Put a 32-bit number, big-endian."""
        store_be32(self.reserve(4), value)
        self.staged(4)

    def put_be64(self, uint64_t value, /):
        """Put a 64-bit number, big-endian."""
        store_be64(self.reserve(8), value)
        self.staged(8)

    def put_buffer(self, buffer, /):
        """Put the bytes of `buffer`: staged if they fit, else sent from where they are."""
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            if <size_t>view.len <= self.capacity - self.tail:
                memcpy(self.staging + self.tail, view.buf, view.len)
                self.staged(view.len)
            else:
                self.send(<const uint8_t*>view.buf, view.len, None)
        finally:
            PyBuffer_Release(&view)

    def put_block_header(self, uint64_t sector, uint64_t flags, bytes name not None, /):
        """Put a record's word and name. OverflowError if sector, flags or name do not fit."""
        check_record(sector, flags, name)
        cdef uint8_t* p = self.reserve(HEADER_MAX)
        self.staged(frame_head(p, sector << SECTOR_BITS | flags, PyBytes_AS_STRING(name), len(name)))

    def put_zero_records(self, uint64_t sector, uint64_t count, bytes name not None, /):
        """Put `count` zero-block records, at `sector` and every 2048 sectors on; they leave with what follows."""
        cdef size_t length = len(name), room
        cdef uint8_t* p
        check_zero_run(sector, count, name)
        while count:
            p = self.reserve(9 + length)
            room = min(count, <uint64_t>((self.capacity - self.tail) // (9 + length)))
            frame_zero_records(p, sector << SECTOR_BITS, room, PyBytes_AS_STRING(name), length)
            self.staged(room * (9 + length))
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

    def flush(self):
        """Hand everything that is staged to the kernel."""
        if self.tail > self.head:
            self.send(NULL, 0, None)

    cdef uint8_t* reserve(self, size_t n) except NULL:
        # Room for n bytes, n <= HEADER_MAX.
        if n > self.capacity - self.tail:
            self.send(NULL, 0, None)
        return self.staging + self.tail

    cdef void staged(self, size_t n) noexcept:
        self.tail += n
        self.position += n

    cdef int send(self, const uint8_t* p, size_t n, BlockBuffer blk, size_t offset=0) except -1:
        # What is staged, then n bytes at p, or at `offset` of the payload of blk.
        cdef size_t left = n
        cdef int error
        self.position += n
        while True:
            if blk is not None:
                p = blk.own if blk.mapping is None else blk.mapping.base + blk.offset
                p += offset
            with nogil:
                error = self.push(p + n - left, &left)
            if error == 0:
                return 0
            if blk is None or blk.mapping is None:
                return fail(error)
            blk.unmap()

    cdef int push(self, const uint8_t* p, size_t* left) except -1 nogil:
        # Returns 0 when all is sent, EFAULT when memory could not be read; *left bytes at the end of p are not sent.
        cdef iovec iov[2]
        cdef size_t n
        cdef Py_ssize_t put
        while self.tail > self.head or left[0]:
            iov[0].iov_base = self.staging + self.head
            iov[0].iov_len = self.tail - self.head
            iov[1].iov_base = <void*>p
            iov[1].iov_len = left[0]
            put = io_write(self.fd, self.kind, iov, 2 if left[0] else 1)
            if put < 0:
                if errno == EFAULT:
                    return EFAULT
                if errno == EAGAIN:
                    wait_for(self.fd, self.wake_fd, True)
                else:
                    again()
                continue
            self.flushed += put
            n = min(<size_t>put, self.tail - self.head)
            self.head += n
            p += put - n
            left[0] -= put - n
        self.head = self.tail = 0
        return 0


@cython.final
cdef class InputBuffer:
    """Bytes that come out of `fd`, a socket, a pipe or a file; headers come staged, payloads go straight to their block.

    A wait for the other side ends with OSError(ECANCELED) when `wake_fd` becomes readable. The end of the stream inside
    an item is EOFError. After either the stream is dead. The fds stay the caller's.
    """

    cdef int fd, wake_fd, kind
    cdef uint8_t* staging
    cdef size_t capacity, head, tail
    cdef readonly uint64_t position     # bytes consumed

    def __cinit__(self, int fd, Py_ssize_t capacity=65536, /, *, int wake_fd=-1):
        self.staging = alloc_staging(capacity)
        self.capacity = capacity
        self.fd = fd
        self.wake_fd = wake_fd
        self.kind = checked_kind(fd)

    def __dealloc__(self):
        free(self.staging)

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
        """Bytes that have arrived and were not consumed yet: so many can be had without waiting."""
        return self.tail - self.head

    def get_some(self, Py_ssize_t nbytes, /):
        """Get at least one byte and at most `nbytes`: what is staged, else what the next read brings; b"" at the end."""
        if nbytes <= 0:
            raise ValueError(f"cannot get {nbytes} bytes")
        try:
            self.require(1)
        except EOFError:
            return b""
        cdef size_t n = min(<size_t>nbytes, self.tail - self.head)
        result = PyBytes_FromStringAndSize(<const char*>self.staging + self.head, n)
        self.consume(n)
        return result

    def peek_byte(self):
        """Return the next byte without consuming it; EOFError at the end of the stream."""
        self.require(1)
        return self.staging[self.head]

    def skip(self, uint64_t nbytes, /):
        """Drop the next `nbytes` bytes."""
        cdef size_t n
        while nbytes:
            self.require(1)
            n = min(nbytes, <uint64_t>(self.tail - self.head))
            self.consume(n)
            nbytes -= n

    def next_run(self):
        """Get the next record, with the zero records behind it that continue it and have arrived.

        Returns (flags, name, sector, count) as parse_run does. The payload of a data record is next: get_block.
        """
        cdef frame_run run
        while True:
            run = frame_parse(self.staging + self.head, self.tail - self.head)
            if run.nbytes:
                break
            self.require(self.tail - self.head + 1)
        name = PyBytes_FromStringAndSize(run.name, run.length)
        self.consume(run.nbytes)
        return run.word & (SECTOR_SIZE - 1), name, run.word >> SECTOR_BITS, run.count

    def get_block(self, BlockBuffer blk not None, /):
        """Get a payload, 1 MiB, into the own bytes of `blk`. It is not scanned: `is_zero` is False afterwards.

        After an error `blk` holds part of the payload.
        """
        blk.mapping = None
        blk.zero = False
        self.take_to(blk.own, BLOCK_SIZE)

    cdef void consume(self, size_t n) noexcept:
        self.head += n
        self.position += n
        if self.head == self.tail:
            self.head = self.tail = 0

    cdef int require(self, size_t n) except -1:
        # At least n bytes are staged, n <= capacity.
        if n <= self.tail - self.head:
            return 0
        if n > self.capacity - self.head:
            memmove(self.staging, self.staging + self.head, self.tail - self.head)
            self.tail -= self.head
            self.head = 0
        with nogil:
            while self.tail - self.head < n:
                self.pull(NULL, 0, self.capacity - self.tail)
        return 0

    cdef const uint8_t* take(self, size_t n) except NULL:
        self.require(n)
        cdef const uint8_t* p = self.staging + self.head
        self.consume(n)                 # the bytes stay where they are until the next read
        return p

    cdef int take_to(self, uint8_t* p, size_t n) except -1:
        cdef size_t done = min(n, self.tail - self.head)
        cdef Py_ssize_t got
        memcpy(p, self.staging + self.head, done)
        self.consume(done)
        with nogil:
            while done < n:             # nothing is staged until the last of these reads
                got = self.pull(p + done, n - done, READ_AHEAD)
                done += got
                self.position += got
        return 0

    cdef Py_ssize_t pull(self, uint8_t* p, size_t n, size_t room) except -1 nogil:
        # Read once, up to n bytes to p and then `room` behind what is staged; returns the bytes at p.
        cdef iovec iov[2]
        cdef Py_ssize_t got
        iov[0].iov_base = p
        iov[0].iov_len = n
        iov[1].iov_base = self.staging + self.tail
        iov[1].iov_len = room
        while True:
            if self.kind == SPEAKS_PIPE:
                wait_for(self.fd, self.wake_fd, False)
            got = io_read(self.fd, self.kind, iov, 2)
            if got > 0:
                break
            if got == 0:
                raise_end(self.position, self.tail - self.head)
            elif errno == EAGAIN:
                wait_for(self.fd, self.wake_fd, False)
            else:
                again()
        if <size_t>got <= n:
            return got
        self.tail += got - n
        return n


cdef uint8_t* alloc_staging(Py_ssize_t capacity) except NULL:
    if capacity < 2 * HEADER_MAX:
        raise ValueError(f"a staging buffer needs at least {2 * HEADER_MAX} bytes, not {capacity}")
    cdef uint8_t* staging = <uint8_t*>malloc(capacity)
    if staging == NULL:
        raise MemoryError(f"no memory for a staging buffer of {capacity} bytes")
    return staging


cdef int checked_kind(int fd) except -1:
    cdef int kind = io_kind(fd)
    return kind if kind >= 0 else fail(errno)


cdef int wait_for(int fd, int wake_fd, bint output) except -1 nogil:
    cdef int rc = io_wait(fd, wake_fd, output)
    if rc > 0:
        return fail(rc)
    return again() if rc < 0 else 0


cdef int raise_end(uint64_t position, size_t staged) except -1 with gil:
    raise EOFError(f"the stream ends at byte {position + staged}, inside an item")
