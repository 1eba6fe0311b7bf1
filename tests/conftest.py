"""Set before torch is loaded: threads that spin while they wait would slow the suite down on a busy machine."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
