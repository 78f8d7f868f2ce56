"""The HTTP API keeps to its own description, whatever the description allows a client to ask, and whatever not."""

from pathlib import Path

import pytest
import schemathesis
from command_runs import TIMEOUT
from http_servers import BEARER, TOKEN, server
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import positive_data_acceptance

EXAMPLES = 6
ENDLESS = "/api/v1/live"
"""A stream, which no client that waits for the whole answer can ask for."""


def test_the_api_keeps_to_its_description(tmp_path: Path) -> None:
    """Whatever a client asks, each answer has a status, a type and a form that the description names for it, none is an
    internal error, and what the description forbids is refused. (Not held: that all it allows is accepted, since no
    schema can say that an id has to be there.)"""
    with server(f"sqlite:///{tmp_path / 'memory.db'}", env={"GEMMA_RAG_SERVER_TOKEN": TOKEN}) as (address, _):
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json", headers=BEARER, timeout=TIMEOUT)
        schema.validate()
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) == 24  # all but the description itself
        for operation in operations:
            if operation.path != ENDLESS:
                ask(operation, GenerationMode.POSITIVE)
                if operation.body or len(operation.path_parameters) or len(operation.query):
                    ask(operation, GenerationMode.NEGATIVE)


def ask(operation: "APIOperation", mode: GenerationMode) -> None:
    """A handful of requests, the same in every run."""

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def asked(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=BEARER, excluded_checks=[positive_data_acceptance], timeout=TIMEOUT)

    try:
        asked()
    except Exception as error:
        pytest.fail(f"{operation.label}, {mode.value}: {error}")
