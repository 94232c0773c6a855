# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks behind an NBD server, and images that are not raw, which blkmig reads through a qemu-nbd that it starts."""
