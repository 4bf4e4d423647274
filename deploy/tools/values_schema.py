"""Writes the chart's values.schema.json: every value by name, so that a misspelled one is refused; options too.

`charts.py` writes the file with --write, and holds it to this without. Draft 7, and no `$ref` with more beside it: Helm
3.18 ignores what stands there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from option_kinds import options, taken
from promql import alerts
from schema_kinds import (
    ALIASES,
    ANYTHING,
    CLAIM,
    DOCUMENT,
    HOST,
    LABELS,
    LOGIN,
    NAME,
    ONE_OF_SEVERAL,
    POD_CLAIM,
    POD_FIELDS,
    POOL,
    PORT,
    QUANTITIES,
    SECRET,
    SERVICE,
    SIZE,
    SOME_HOST,
    SOME_TEXT,
    TEXT,
    TEXTS,
    TOKENIZER,
    URL,
    WORKERS,
    YES_OR_NO,
    Schema,
    number,
    of,
    one_of,
    several,
    whole,
)
from sparsity_router.config import RouterConfig
from sparsity_rpc.semconv import FIRST_TOKEN_SECONDS
from sparsity_rpc.tiers import TIERS
from sparsity_serving.bounds import MAX_NAME
from sparsity_worker.config import WorkerConfig

FILE = Path(__file__).resolve().parents[1] / "helm" / "sparsity-router" / "values.schema.json"


def component(own: Schema, image: Schema, settings: type | None) -> Schema:
    """What the router, a pool and the defaults have in common, and what is ``own`` to one."""
    common: Schema = {
        "image": image,
        "replicas": whole(0),
        "drainSeconds": taken(settings or RouterConfig, "drain-seconds"),
        "startupSeconds": whole(5),
        "resources": of(requests=QUANTITIES, limits=QUANTITIES, claims=several(CLAIM)),
        "resourceClaims": several(POD_CLAIM),
        "shmSize": SIZE,
        "runtimeClassName": TEXT,
        "priorityClassName": TEXT,
        "nodeSelector": {**TEXTS, "type": ["object", "null"]},
        "tolerations": several(),
        "affinity": {"type": ["object", "null"]},
        "topologySpreadConstraints": several(),
        "podSecurityContext": {"type": ["object", "null"]},
        "securityContext": {"type": ["object", "null"]},
        "podAnnotations": TEXTS,
        "podLabels": LABELS,
        "extraEnv": several({"type": "object", "required": ["name"]}),
        "envFrom": several(),
        "podSpec": POD_FIELDS,
        "initContainers": several({"type": "object", "required": ["name", "image"]}),
        "sidecars": several({"type": "object", "required": ["name", "image"]}),
        "extraVolumes": several(),
        "extraVolumeMounts": several(),
        "rolloutStep": whole(1),
        "podDisruptionBudget": of(enabled=YES_OR_NO, maxUnavailable={"type": ["integer", "string"]}),
        "autoscaling": of(
            kind=one_of("none", "hpa", "keda", "adapter"),
            minReplicas=whole(0),
            maxReplicas=whole(1),
            targetCPU=whole(1, 100),
            targetWaiting=number(exclusiveMinimum=0),
            targetKvUse=number(exclusiveMinimum=0, maximum=1),
            cooldownSeconds=whole(0, 3600),
        ),
    }
    if settings is not None:
        common["options"] = options(settings)
    return of(**common, **own)


def model(**more: Schema) -> Schema:
    """Where a model comes from, and what else is to be said of it."""
    return of(
        name={**TEXT, "maxLength": MAX_NAME},
        aliases=ALIASES,
        existingClaim=NAME,
        subPath=TEXT,
        builtin=YES_OR_NO,
        source={"type": "string", "pattern": "^((hf|s3|oci|pvc|hostPath)://.+)?$"},
        cache=of(
            existingClaim=NAME,
            size=SIZE,
            accessModes=several(one_of("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")),
            storageClassName=NAME,
            keep=YES_OR_NO,
        ),
        sha256={
            "type": "object",
            "propertyNames": {"pattern": "^[A-Za-z0-9_][A-Za-z0-9._/-]*$"},
            "additionalProperties": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        },
        download=of(
            secretName=NAME,
            secretKey=SOME_TEXT,
            endpoint=URL,
            region=TEXT,
            include=several(SOME_TEXT),
            exclude=several(SOME_TEXT),
            image=TEXT,
            seconds=whole(60),
            resources=of(requests=QUANTITIES, limits=QUANTITIES),
        ),
        # Refused by a template that says why.
        adapters={},
        **more,
    )


def alert(expression: str) -> Schema:
    """What may differ of an alert; one that fires at the first time has no threshold."""
    fields: dict[str, Schema] = {
        "enabled": YES_OR_NO,
        "for": {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$"},
        "severity": SOME_TEXT,
    }
    if re.search(r"[<>] (?!0$)[0-9.]+$", expression):
        fields["threshold"] = number(exclusiveMinimum=0)
    if 'le="5.0"' in expression:
        # A histogram knows its buckets' ends.
        fields["seconds"] = {"enum": list(FIRST_TOKEN_SECONDS)}
    return of(**fields)


def values() -> Schema:
    """All of them."""
    # What names one image stands with the component that it is of.
    any_image: Schema = {"registry": TEXT, "tag": TEXT, "pullPolicy": one_of("Always", "IfNotPresent", "Never")}
    digest: Schema = {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"}
    image = of(**any_image, repository=TEXT, digest=digest)
    router: Schema = {
        "service": SERVICE,
        "http": of(enabled=YES_OR_NO),
        "workers": WORKERS,
        "discovery": one_of("dns", "kubernetes"),
        "connectionSeconds": taken(RouterConfig, "connection-seconds"),
        "tokenizer": TOKENIZER,
        "snapshot": of(existingClaim=NAME),
        "policyTtl": taken(RouterConfig, "policy-ttl"),
        "rollout": one_of("surge", "replace"),
    }
    door = of(host=HOST, annotations=TEXTS)
    rollout: Schema = {"rollout": one_of("surge", "replace", "recreate")}
    pool: Schema = {
        "enabled": YES_OR_NO,
        "tiers": {**several(one_of(*TIERS)), "minItems": 1, "uniqueItems": True},
        "profiles": {**several(SOME_TEXT), "uniqueItems": True},
        "nodes": whole(1),
        "model": {"type": "string"},
        # Refused by a template that says what to write: of the time when an entry was a tier.
        "profile": {},
        **rollout,
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of sparsity-router",
        **of(
            **{"global": {"type": "object", "properties": {"imageRegistry": TEXT}}},
            nameOverride=TEXT,
            fullnameOverride=TEXT,
            commonLabels=LABELS,
            imagePullSecrets=several({**of(name=NAME), "required": ["name"]}),
            clusterDomain=SOME_TEXT,
            listenHost=one_of("0.0.0.0", "::"),
            serviceAccount=of(create=YES_OR_NO, name=NAME, annotations=TEXTS),
            model=model(),
            models={
                "type": "object",
                "propertyNames": {"pattern": POOL},
                "additionalProperties": model(**ONE_OF_SEVERAL),
            },
            defaults=component(rollout, of(**any_image), None),
            router=component(router, image, RouterConfig),
            workers={
                "type": "object",
                "propertyNames": {"pattern": POOL},
                "additionalProperties": component(pool, image, WorkerConfig),
            },
            entry=of(
                gateways=several({**of(name=NAME, namespace=NAME, sectionName=NAME, port=PORT), "required": ["name"]}),
                grpcHostnames=several(SOME_HOST),
                httpHostnames=several(SOME_HOST),
                inferencePool=of(
                    enabled=YES_OR_NO,
                    endpointPicker=of(name=NAME, port=PORT, failureMode=one_of("FailOpen", "FailClose")),
                ),
                ingress=of(className=NAME, grpc=door, http=door, tlsSecretName=NAME),
            ),
            redis=of(
                url={"type": "string", "pattern": "^(rediss?(\\+(sentinel|cluster))?://.+)?$"},
                **SECRET["properties"],
                auth=LOGIN,
                sentinelAuth=LOGIN,
                tls=of(secretName=NAME, caKey=TEXT, certKey=TEXT, keyKey=TEXT),
                embedded=of(
                    enabled=YES_OR_NO,
                    image=TEXT,
                    storage=TEXT,
                    storageClassName=NAME,
                    resources=of(requests=QUANTITIES, limits=QUANTITIES),
                ),
            ),
            policies=of(
                mode=one_of("store", "folder"),
                git=of(
                    repository={"type": "string", "pattern": "^((https|ssh)://[^/]+/.+)?$"},
                    ref=SOME_TEXT,
                    path=TEXT,
                    periodSeconds=whole(1),
                    secretName=NAME,
                    image=TEXT,
                    resources=of(requests=QUANTITIES, limits=QUANTITIES),
                ),
                bandSet=taken(RouterConfig, "band-set"),
                configMap=NAME,
                documents={"type": "object", "additionalProperties": DOCUMENT},
            ),
            leases=of(enabled=YES_OR_NO, **SECRET["properties"]),
            access=SECRET,
            operatorKey=SECRET,
            tenantLimits=ANYTHING,
            tls=of(
                router=of(secretName=NAME, clientAuth=YES_OR_NO),
                workers=of(secretName=NAME, clientSecretName=NAME, serverName=TEXT),
            ),
            networkPolicy=of(
                enabled=YES_OR_NO,
                clients=several(),
                monitoring=several(),
                directClients=YES_OR_NO,
                redisPorts=several(PORT),
                apiPorts={**several(PORT), "minItems": 1},
                modelPorts=several(PORT),
                dns=of(ports=several(PORT), peers=several()),
                extraEgress=several(),
            ),
            tracing=of(
                endpoint=URL,
                protocol=one_of("grpc", "http/protobuf"),
                sampler=one_of(
                    *(
                        f"{prefix}{name}"
                        for prefix in ("", "parentbased_")
                        for name in ("always_on", "always_off", "traceidratio")
                    )
                ),
                ratio=number(minimum=0, maximum=1),
            ),
            logging=of(format=one_of("json", "text"), requests=YES_OR_NO),
            monitoring=of(
                podMonitor=of(
                    enabled=YES_OR_NO, interval={"type": "string", "pattern": "^[0-9]+(ms|s|m)$"}, labels=LABELS
                ),
                prometheusRule=of(
                    enabled=YES_OR_NO,
                    labels=LABELS,
                    runbookUrl=URL,
                    alerts=of(**{str(rule["alert"]): alert(str(rule["expr"])) for rule in alerts()}),
                ),
                dashboards=of(enabled=YES_OR_NO, labels=LABELS),
                prometheusUrl=URL,
                releaseLabel={"type": "string", "pattern": "^[a-zA-Z0-9_]*$"},
            ),
            extraObjects=several(),
        ),
    }


def written() -> str:
    """The file as it must be."""
    return json.dumps(values(), indent=1) + "\n"
