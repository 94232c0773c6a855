# SPDX-License-Identifier: GPL-2.0-or-later
"""What the end-to-end benchmarks stand on: C tools, images, measured processes, and the commands of every side."""
