"""An error -> what a client is told: a stable code, a message, and whether the same call may succeed later."""

import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pydantic import ValidationError

NOT_FOUND: Final = "not_found"
NOT_ALLOWED: Final = "not_allowed"
INVALID_INPUT: Final = "invalid_input"
UNKNOWN_TOOL: Final = "unknown_tool"
INTERNAL: Final = "internal"
MOST_TOLD: Final = 10
"""Faults of one request that are named: models pay by the token, and a request may have a hundred thousand."""

CODES: Final[dict[str, tuple[str, bool]]] = {
    "GemmaRagError": ("failed", False),
    "InvalidInputError": (INVALID_INPUT, False),
    "InvalidTypeError": (INVALID_INPUT, False),
    "SettingsError": ("bad_configuration", False),
    "BackendStateError": ("shutting_down", True),
    "CapacityError": ("tier_full", False),
    "QueueFullError": ("busy", True),
    "MissingExtraError": ("missing_extra", False),
    "DocumentError": ("bad_document", False),
    "DocumentNotFoundError": ("document_not_found", False),
    "ModelError": ("model_failed", False),
    "ModelNotFoundError": ("model_not_found", False),
    "ModelDamagedError": ("model_damaged", False),
    "ModelMismatchError": ("model_mismatch", False),
    "StoreError": ("store_failed", False),
    "StoreUnavailableError": ("store_unavailable", True),
    "StoreBusyError": ("store_busy", True),
    "StoreFullError": ("store_full", False),
    "StoreDamagedError": ("store_damaged", False),
    "StoreLostError": ("store_lost", True),
    "StoreVersionError": ("store_version", False),
}
"""Code and `retryable` for each class of `gemma_cli.rag.errors`, by name: looking an error up imports nothing."""


class Refusal(Exception):
    """A call that the server itself turns down."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Failure:
    """What a client is told. `code` is stable, `message` is for people and models and may change."""

    code: str
    message: str
    retryable: bool = False


def failure(error: BaseException | None) -> Failure | None:
    """What a client is told of an error; None for one that nobody foresaw, of which it shall learn nothing."""
    if isinstance(error, Refusal):
        return Failure(error.code, str(error))
    if (pydantic := sys.modules.get("pydantic")) is not None and isinstance(error, pydantic.ValidationError):
        return Failure(INVALID_INPUT, _fields(error))  # comes from nowhere where nobody has imported it
    for kind in type(error).__mro__:
        if kind.__module__ == "gemma_cli.rag.errors" and kind.__name__ in CODES:
            code, retryable = CODES[kind.__name__]
            return Failure(code, str(error), retryable)
    return None


def reason(error: BaseException, logger: logging.Logger, event: str) -> str:
    """What a status says of an error; one that nobody foresaw is logged as `event`."""
    known = failure(error)
    if known is not None:
        return known.message
    logger.error(event, exc_info=error)
    return "an internal error; see the server's log"


def _fields(error: "ValidationError") -> str:
    """Which arguments are wrong, without their values."""
    found: list[dict[str, Any]] = [dict(one) for one in error.errors(include_url=False, include_input=False)]
    named = [f"{'.'.join(map(str, one['loc'])) or 'arguments'}: {one['msg']}" for one in found[:MOST_TOLD]]
    return "; ".join([*named, f"and {len(found) - MOST_TOLD:,} more"] if len(found) > MOST_TOLD else named)
