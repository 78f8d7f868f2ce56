"""Fixtures over real servers; a test module or the conftest of all tests asks for them with

    pytest_plugins = ["server_fixtures"]

Each runs once with every server program that was found. Shared servers are empty at the start of a test.
"""

from collections.abc import Iterator

import pytest
from server_groups import Cluster, Replicated, shared_cluster
from servers import VARIABLE, Program, Server, programs, shared

NONE = pytest.param(None, id="none", marks=pytest.mark.skip(f"no redis-server; install one or name it in {VARIABLE}"))


@pytest.fixture(scope="session", params=programs() or (NONE,), ids=str)
def server_program(request: pytest.FixtureRequest) -> Program:
    """Each server program."""
    assert isinstance(request.param, Program)
    return request.param


@pytest.fixture
def redis_server(server_program: Program) -> Server:
    """A server that other tests use too: neither kill nor configure it."""
    return shared(server_program)


@pytest.fixture
def own_server(server_program: Program) -> Iterator[Server]:
    """A server for this test alone, which may do anything to it."""
    with Server(server_program) as server:
        yield server


@pytest.fixture
def redis_cluster(server_program: Program) -> Cluster:
    """A cluster of 3 masters that other tests use too: neither kill a node nor move a slot."""
    return shared_cluster(server_program)


@pytest.fixture(scope="module")
def own_cluster(server_program: Program) -> Iterator[Cluster]:
    """A cluster of 3 masters and 3 replicas for the tests of this module, which leave it whole."""
    with Cluster(server_program) as cluster:
        yield cluster


@pytest.fixture
def replicated(server_program: Program) -> Iterator[Replicated]:
    """A master and a replica with three Sentinels, for this test alone."""
    with Replicated(server_program) as group:
        yield group
