"""Set before torch is loaded: threads that spin would slow a busy machine. And a Ctrl-C that counts."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell ignores Ctrl-C for what it starts in the background, and all below would; these tests send it themselves
    signal.signal(signal.SIGINT, signal.default_int_handler)
