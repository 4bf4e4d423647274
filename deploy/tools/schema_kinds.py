"""Kinds of values in the words of JSON Schema, draft 7: texts, numbers, secrets, claims, parts of policies, models."""

from __future__ import annotations

from typing import Any

from sparsity_policies.model import Risk, Tier
from sparsity_serving.bounds import MAX_NAME

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
SOME_TEXT: Schema = {"type": "string", "minLength": 1}
YES_OR_NO: Schema = {"type": "boolean"}
ANYTHING: Schema = {"type": "object"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
# What the chart sets itself; by most of it objects are found.
_OWN_LABELS = (
    *(f"app.kubernetes.io/{word}" for word in ("name", "instance", "component", "version", "managed-by")),
    "helm.sh/chart",
)
LABELS: Schema = {**TEXTS, "properties": {label: {"not": {}} for label in _OWN_LABELS}}
NAME: Schema = {"type": "string", "pattern": "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", "maxLength": 253}
QUANTITIES: Schema = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
SIZE: Schema = {"type": "string", "pattern": "^([0-9.]+[EPTGMK]i?)?$"}
URL: Schema = {"type": "string", "pattern": "^(https?://.+)?$"}


def of(**properties: Schema) -> Schema:
    """An object of these fields and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def several(item: Schema = ANYTHING) -> Schema:
    """A list."""
    return {"type": "array", "items": item}


def whole(least: int, most: int | None = None) -> Schema:
    """A number without a fraction."""
    return {"type": "integer", "minimum": least, **({} if most is None else {"maximum": most})}


def number(**bounds: float) -> Schema:
    """A number."""
    return {"type": "number", **bounds}


def one_of(*words: str) -> Schema:
    """One of these words."""
    return {"enum": list(words)}


# Fields that the API knows and the chart does not set, each by name, so that a misspelled one is refused.
POD_FIELDS = of(
    schedulerName=TEXT,
    hostNetwork=YES_OR_NO,
    hostIPC=YES_OR_NO,
    hostAliases=several(),
    dnsPolicy=one_of("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    dnsConfig=ANYTHING,
    shareProcessNamespace=YES_OR_NO,
)
SERVICE_FIELDS = of(
    loadBalancerClass=SOME_TEXT,
    loadBalancerSourceRanges=several(SOME_TEXT),
    allocateLoadBalancerNodePorts=YES_OR_NO,
    externalTrafficPolicy=one_of("Cluster", "Local"),
    internalTrafficPolicy=one_of("Cluster", "Local"),
    trafficDistribution=SOME_TEXT,
    ipFamilyPolicy=one_of("SingleStack", "PreferDualStack", "RequireDualStack"),
    ipFamilies=several(one_of("IPv4", "IPv6")),
    sessionAffinity=one_of("ClientIP", "None"),
    sessionAffinityConfig=ANYTHING,
)
SERVICE: Schema = of(
    type=one_of("ClusterIP", "NodePort", "LoadBalancer"), annotations=TEXTS, labels=LABELS, spec=SERVICE_FIELDS
)

PORT = whole(1, 65535)
HOST: Schema = {"type": "string", "pattern": "^((\\*\\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", "maxLength": 253}
SOME_HOST: Schema = {**HOST, "minLength": 1}
# An address as --worker takes it, its port a number: the network policy opens that.
_AT = r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])"
_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_NAMED = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
WORKER = f"^((sglang\\+grpc://)?{_AT}|(sglang\\+)?dns:///{_AT}|(sglang\\+)?k8s:///{_NAMED}/{_NAMED}):{_PORT}$"
# Part of the names of Services, which are labels of DNS, and of labels.
POOL = "^[a-z]([-a-z0-9]{0,13}[a-z0-9])?$"
SECRET = of(secretName=NAME, secretKey=SOME_TEXT)
LOGIN = of(secretName=NAME, usernameKey=TEXT, passwordKey=SOME_TEXT)
CLAIM = {**of(name=SOME_TEXT, request=TEXT), "required": ["name"]}
POD_CLAIM = {**of(name=SOME_TEXT, resourceClaimName=NAME, resourceClaimTemplateName=NAME), "required": ["name"]}
BAND: dict[str, Schema] = {"from_tokens": whole(0), "tier": one_of(*(tier.name.lower() for tier in Tier))}
ALIASES: Schema = {**several({**SOME_TEXT, "maxLength": MAX_NAME}), "uniqueItems": True}
WORKERS: Schema = {**several({"type": "string", "pattern": WORKER}), "uniqueItems": True}
TOKENIZER: Schema = of(image=TEXT, path=SOME_TEXT, existingClaim=NAME, subPath=TEXT)
# What Helm can tell of a policy; the job before an install reads it whole.
DOCUMENT: Schema = {
    "type": "object",
    "required": ["domain"],
    "properties": {
        "risk": one_of(*(risk.name.lower() for risk in Risk)),
        "bands": several({"type": "object", "properties": BAND}),
    },
}
OWN_BANDS: Schema = {**several({**of(**BAND, task=TEXT), "required": ["from_tokens", "tier"]}), "minItems": 1}
# Beside what one has too: of each of several models.
ONE_OF_SEVERAL: dict[str, Schema] = {
    "default": YES_OR_NO,
    "bands": of(low=OWN_BANDS, elevated=OWN_BANDS),
    "workers": WORKERS,
    "tokenizer": TOKENIZER,
}
