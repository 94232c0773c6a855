# SPDX-License-Identifier: GPL-2.0-or-later
cdef extern from "c/plain.h":
    int plain_get(object buffer, Py_buffer* view, int flags) except -1
