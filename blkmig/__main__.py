# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m blkmig`` is the ``blkmig`` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
