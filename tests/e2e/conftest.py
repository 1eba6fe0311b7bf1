"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.forks import Forks, forks


@pytest.fixture(scope="session")
def verbs() -> Iterator[Forks]:
    """Runs verbs without their imports' seconds."""
    with forks() as process:
        yield process
