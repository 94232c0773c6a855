# SPDX-License-Identifier: GPL-2.0-or-later
"""How often whole copies run: a round takes seconds, and the noise of two processes is that of the whole machine."""

# The interval of nine rounds leaves out the best and the worst; 14, 21 and 32 come only while a promise is open.
UNTIL_DECIDED = {"min_rounds": 9, "max_rounds": 32, "max_time": 600.0}
