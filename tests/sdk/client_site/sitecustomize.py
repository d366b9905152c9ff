"""What the tests' client processes run with: `print` writes each line whole.

A client prints its containers' output from another thread, and Python's `print` writes each of its words, and the end of the line,
by itself: a line of a container may come between two words of one of the program's.
"""

import builtins
import functools
import io

_print = builtins.print


@functools.wraps(_print)
def _print_whole(*values, sep=None, end=None, file=None, flush=False):
    line = io.StringIO()
    _print(*values, sep=sep, end=end, file=line)
    _print(line.getvalue(), end="", file=file, flush=flush)


builtins.print = _print_whole
