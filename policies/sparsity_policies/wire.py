"""Between our values and the messages of `sparsity.v1`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from sparsity.v1 import inference_pb2, policy_pb2
from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.bounds import MAX_ALSO, check_flags, check_labels, check_name, seconds_of

from sparsity_policies.decisions.simulate import SimulatedRequest, Summary
from sparsity_policies.documents.document import Check, parse_policy, to_document
from sparsity_policies.documents.validate import check_policy
from sparsity_policies.model import Decision, Override, Policy, Scope, Signals, StoredPolicy, Tier

_PREFIXES = {"tier": "TIER_", "max_tier": "TIER_", "held_back": "TIER_", "risk": "RISK_", "fallback": "TIER_"}


def policy_from_wire(message: policy_pb2.Policy, check: Check = check_policy) -> Policy:
    """Reads and validates a policy message; ``check`` finds the mistakes of one of the right shape.

    Raises:
        InvalidRequestError: with one violation a mistake.
    """
    document = json_format.MessageToDict(message, preserving_proto_field_name=True)
    for name in ("rollout", "shadow"):
        if name in document and not message.HasField(name):
            del document[name]
    plain = _lower(document)
    for band in plain.get("bands", []):
        band.setdefault("from_tokens", 0)
    for part in (plain.get("shadow", {}),):
        if "tokens_per_minute" in part:
            part["tokens_per_minute"] = int(part["tokens_per_minute"])
    return parse_policy(plain, check)


def _lower(value: Any, key: str = "") -> Any:
    """Enum names as documents spell them."""
    if isinstance(value, dict):
        inner = key in ("labels",)
        return {name: item if inner else _lower(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_lower(item, key) for item in value]
    if isinstance(value, str) and (prefix := _PREFIXES.get(key)):
        return value.removeprefix(prefix).lower()
    return value


def policy_to_wire(policy: Policy) -> policy_pb2.Policy:
    """The message of a policy."""
    message = policy_pb2.Policy()
    json_format.ParseDict(_upper(to_document(policy)), message)
    return message


def _upper(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: item if key == "labels" else _upper(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_upper(item, key) for item in value]
    if isinstance(value, str) and (prefix := _PREFIXES.get(key)):
        return f"{prefix}{value.upper()}"
    return value


def timestamp(seconds: float) -> Timestamp:
    """Seconds since the epoch as a message."""
    message = Timestamp()
    message.FromNanoseconds(int(seconds * 1e9))
    return message


def stored_to_wire(stored: StoredPolicy) -> policy_pb2.StoredPolicy:
    """The message of a stored policy."""
    return policy_pb2.StoredPolicy(
        policy=policy_to_wire(stored.policy),
        etag=stored.etag,
        revision=stored.revision,
        update_time=timestamp(stored.update_time),
        actor=stored.actor,
        reason=stored.reason,
        deleted=stored.deleted,
    )


def override_to_wire(override: Override) -> policy_pb2.Override:
    """The message of an override."""
    message = policy_pb2.Override(
        id=override.id,
        scope=policy_pb2.OverrideScope.ValueType(override.scope),
        target=override.target,
        max_tier=override.max_tier.wire,
        reason=override.reason,
        actor=override.actor,
    )
    if override.expire_time is not None:
        message.expire_time.CopyFrom(timestamp(override.expire_time))
    return message


def override_from_wire(message: policy_pb2.Override, new_id: str, now: float) -> Override:
    """Reads and checks an override; ``new_id`` stands in for an empty id, ``now`` in seconds since the epoch.

    Raises:
        InvalidRequestError: naming the field.
    """
    if int(message.scope) not in list(Scope):
        raise InvalidRequestError.of("override.scope", "must be GLOBAL, DOMAIN, TENANT or TIER")
    scope = Scope(message.scope)
    if (scope is Scope.GLOBAL) == bool(message.target):
        problem = "must be empty for a global override" if scope is Scope.GLOBAL else "is empty; name what to act on"
        raise InvalidRequestError.of("override.target", problem)
    if message.max_tier and int(message.max_tier) not in list(Tier):
        raise InvalidRequestError.of("override.max_tier", f"{message.max_tier} is not a tier")
    tier = Tier(message.max_tier) if message.max_tier else Tier.DENSE
    for field, text in (("id", message.id), ("target", message.target)):
        check_name(f"override.{field}", text)
    expires = seconds_of("override.expire_time", message.expire_time) if message.HasField("expire_time") else None
    if scope is Scope.TIER:
        sparse = [other.word for other in Tier if other is not Tier.DENSE]
        if message.target not in sparse:
            raise InvalidRequestError.of("override.target", f"must be {' or '.join(sparse)}, not {message.target!r}")
        if tier >= Tier[message.target.upper()]:
            raise InvalidRequestError.of("override.max_tier", f"must be denser than {message.target}")
    if expires is not None and expires <= now:
        raise InvalidRequestError.of("override.expire_time", "lies in the past")
    return Override(message.id or new_id, scope, message.target, tier, expires, message.reason, message.actor)


def decision_to_wire(decision: Decision, decision_id: str) -> inference_pb2.Decision:
    """The message of a decision."""
    return inference_pb2.Decision(
        decision_id=decision_id,
        tier=decision.tier.wire,
        reason=inference_pb2.Reason.ValueType(decision.reason),
        matched_rule=decision.matched_rule,
        policy=decision.policy,
        policy_revision=decision.policy_revision,
        policy_tier=decision.policy_tier.wire,
        explanation=decision.explanation,
        dense_reasoning=decision.dense_reasoning,
    )


def signals_to_wire(signals: Signals) -> inference_pb2.Signals:
    """The message of signals."""
    source = inference_pb2.DOMAIN_SOURCE_UNSPECIFIED
    if signals.domain:
        source = inference_pb2.DOMAIN_SOURCE_DETECTED if signals.detected else inference_pb2.DOMAIN_SOURCE_DECLARED
    return inference_pb2.Signals(
        min_tokens=signals.min_tokens,
        max_tokens=signals.max_tokens,
        domain=signals.domain,
        domain_source=source,
        flags=sorted(signals.flags),
        task=signals.task,
        labels=dict(signals.labels),
        tenant=signals.tenant,
        session=signals.session,
        scanned_bytes=signals.scanned_bytes,
        prompt_bytes=signals.prompt_bytes,
        max_tier=signals.max_tier.wire if signals.max_tier else inference_pb2.TIER_UNSPECIFIED,
        classifier_error=signals.classifier_error,
        request_key=signals.request_key,
        declared_domain=signals.declared,
        confidence=signals.confidence if signals.confidence < 1 else None,
        session_tier=signals.session_tier.wire if signals.session_tier else inference_pb2.TIER_UNSPECIFIED,
        dense_reasoning=signals.dense_reasoning,
        model=signals.model,
        also_found=signals.also,
    )


def signals_from_wire(message: inference_pb2.Signals, path: str, now: float) -> Signals:
    """Reads and checks signals that a caller made up.

    Raises:
        InvalidRequestError: naming the field below ``path``.
    """
    if message.max_tokens < message.min_tokens:
        problem = f"is {message.max_tokens}, below min_tokens {message.min_tokens}"
        raise InvalidRequestError.of(f"{path}.max_tokens", problem)
    if message.max_tier and int(message.max_tier) not in list(Tier):
        raise InvalidRequestError.of(f"{path}.max_tier", f"{message.max_tier} is not a tier")
    if message.session_tier and int(message.session_tier) not in list(Tier):
        raise InvalidRequestError.of(f"{path}.session_tier", f"{message.session_tier} is not a tier")
    for name in ("domain", "task", "tenant", "session", "declared_domain", "request_key", "model"):
        check_name(f"{path}.{name}", getattr(message, name))
    if len(message.also_found) > MAX_ALSO:
        raise InvalidRequestError.of(f"{path}.also_found", f"must be {MAX_ALSO} at most")
    for name in message.also_found:
        check_name(f"{path}.also_found", name)
    check_flags(f"{path}.flags", message.flags)
    check_labels(f"{path}.labels", message.labels)
    return Signals(
        min_tokens=message.min_tokens,
        max_tokens=message.max_tokens,
        domain=message.domain,
        detected=message.domain_source == inference_pb2.DOMAIN_SOURCE_DETECTED,
        flags=frozenset(message.flags),
        task=message.task,
        labels=tuple(sorted(message.labels.items())),
        tenant=message.tenant,
        session=message.session,
        max_tier=Tier(message.max_tier) if message.max_tier else None,
        scanned_bytes=message.scanned_bytes,
        prompt_bytes=message.prompt_bytes,
        classifier_error=message.classifier_error,
        received_at=now,
        request_key=message.request_key,
        declared=message.declared_domain,
        confidence=message.confidence if message.HasField("confidence") else 1.0,
        session_tier=Tier(message.session_tier) if message.session_tier else None,
        dense_reasoning=message.dense_reasoning,
        model=message.model,
        also=tuple(message.also_found),
    )


def summary_to_wire(summary: Summary, requests: Iterable[SimulatedRequest] = ()) -> policy_pb2.SimulatePolicyResponse:
    """The message of a simulation; ``requests`` are told one by one."""
    response = policy_pb2.SimulatePolicyResponse()
    for request in requests:
        response.decisions.add(
            before=decision_to_wire(request.before, ""),
            after=decision_to_wire(request.after, ""),
        )
    found = response.summary
    found.requests = summary.requests
    for (before, after), count in sorted(summary.changes.items()):
        found.changes.add(before=before.value, after=after.value, requests=count)
    found.high_risk_changed = summary.high_risk_changed
    found.high_risk_sparser = summary.high_risk_sparser
    for cost, message in ((summary.before, found.before), (summary.after, found.after)):
        if cost is not None:
            message.flops, message.kv_bytes = cost.flops, cost.kv_bytes
    used = {tier for pair in summary.changes for tier in pair}
    for tier, density in sorted((tier, density) for tier, density in summary.densities.items() if tier in used):
        found.densities.add(tier=tier.value, prefill=density.prefill, decode=density.decode, requests=density.requests)
    return response
