"""Callers' measures of quality, joined to the decisions that they are of."""

from __future__ import annotations

import asyncio

from sparsity.v1 import inference_pb2
from sparsity_policies.storage.decisionlog import DecisionLog
from sparsity_rpc.errors import ConfigurationError, InvalidRequestError, NotFoundError
from sparsity_serving.bounds import MAX_NAME, check_labels, check_name

# Seconds between tries to join an outcome to a decision; 0 is the last.
_PATIENCE = (0.2, 0.4, 0.0)


async def report(decisions: DecisionLog | None, request: inference_pb2.ReportOutcomeRequest, tenant: str = "") -> None:
    """Joins a caller's measure of an answer to the decision that it is of.

    Args:
        decisions: the log; None where the router has none.
        request: as the caller sent it.
        tenant: of the caller, whose decisions alone it may report of; empty may report of any.

    Raises:
        ConfigurationError: without a log.
        InvalidRequestError: naming the field.
        NotFoundError: when the decision is not in the log, not yet, or is another tenant's.
        StoreError: when the log cannot be asked.
    """
    if decisions is None:
        raise ConfigurationError("this router keeps no decision log: it was started without --redis-url")
    if not request.decision_id:
        raise InvalidRequestError.of("decision_id", "is empty; it comes with the last message of Generate")
    check_name("decision_id", request.decision_id)
    if not request.HasField("score") or not 0.0 <= request.score <= 1.0:
        raise InvalidRequestError.of("score", "must be a number from 0 to 1")
    if not request.metric or len(request.metric) > MAX_NAME:
        raise InvalidRequestError.of("metric", f"must have 1 to {MAX_NAME} characters, such as exact_match")
    check_labels("labels", request.labels)
    labels = tuple(sorted(request.labels.items()))
    for patience in _PATIENCE:
        try:
            await decisions.report(request.decision_id, request.metric, request.score, labels, tenant)
            return
        except NotFoundError:
            # The router that relayed the answer writes its log in batches.
            if not patience:
                raise
            await asyncio.sleep(patience)
