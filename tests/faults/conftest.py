"""The servers that the fault matrix plays on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.scene import Servers


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """Two Redis of the session's own, and the session's RabbitMQ."""
    with Servers(lambda: request.getfixturevalue("rabbitmq_session")) as made:
        yield made


@pytest.fixture(scope="session")
def servers4(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """The same with the session's RabbitMQ 4."""
    with Servers(lambda: request.getfixturevalue("rabbitmq4_session")) as made:
        yield made
