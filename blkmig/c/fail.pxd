# SPDX-License-Identifier: GPL-2.0-or-later
cdef extern from "c/fail.h":
    int io_fail(int error) except -1 nogil
