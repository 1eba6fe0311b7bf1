"""Which GPUs this machine has, as its driver names them; asked without loading a framework."""

from __future__ import annotations

import subprocess

#: seconds that the driver's tool may take
LIMIT_S = 20.0


def gpu_names(tool: str = "nvidia-smi") -> tuple[str, ...]:
    """'NVIDIA H100 80GB HBM3' and its like, one a GPU; none where there is no driver, or it does not answer."""
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def is_called(device: str, name: str) -> bool:
    """Does the driver's name of a GPU belong to a device of ours? Told by the model alone: 'h100-sxm' is any H100, for
    drivers do not always say how it is mounted."""
    words = name.lower().replace("-", " ").split()
    model = next((word for word in device.lower().split("-") if any(map(str.isdigit, word))), device.lower())
    return model in words
