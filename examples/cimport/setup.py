# SPDX-License-Identifier: GPL-2.0-or-later
"""Build `heat` with nothing but Cython and the installed blkmig: it needs no header and no library."""

from setuptools import Extension, setup

setup(name="heat", ext_modules=[Extension("heat", ["heat.pyx"])])
