"""How a noun refuses what it is given."""

from __future__ import annotations

from typing import Any

import pytest

from suite.parse import SpecError


def refused(kind: type, **values: Any) -> str:
    """The one line with which a noun refuses these values."""
    with pytest.raises(SpecError) as error:
        kind(**values)
    assert "\n" not in str(error.value)
    return str(error.value)
