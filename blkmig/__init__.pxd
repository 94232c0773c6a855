# SPDX-License-Identifier: GPL-2.0-or-later
# Makes the package visible to ``cimport blkmig._core``.
