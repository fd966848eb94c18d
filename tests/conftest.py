"""What holds for all tests: Ctrl-C reaches them and their children, also where a shell has started them in the background, which ignores it."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
