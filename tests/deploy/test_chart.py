"""What the chart renders, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from charts import CHART, ROOT, examples, refusal, render, run, value_files
from helm import PACKAGES, helm
from prometheus_client.utils import floatToGoString
from promql import documented, selectors
from sparsity_policies.storage.redis_url import Login, RedisTls, read_url
from sparsity_rpc.semconv import FIRST_TOKEN_SECONDS
from support.deploy.configured import configured
from support.deploy.rendered import containers, documents, egress_ports, models_file, of_kind, pods, rendered

PROGRAMS = {"router": "sparsity_router", "worker": "sparsity_worker"}
STORE = ("redis.embedded.enabled=false",)
CHECKED = ("policies-check", "policies")
SECRETS = {"access": "sparsity-access", "leases": "sparsity-leases"}


def test_without_values_it_says_what_it_needs() -> None:
    said = refusal(helm(), [], example=None)
    assert "redis: give one of redis.secretName (a Secret with the URL)" in said


@pytest.mark.parametrize("name", [path.stem for path in examples()])
def test_every_container_is_locked_down(name: str) -> None:
    for container in containers(documents(name)):
        security = container["pod"]["securityContext"] | container["securityContext"]
        assert security["runAsNonRoot"]
        assert security["readOnlyRootFilesystem"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not container["image"].endswith(":latest")
        assert "requests" in container["resources"]
        if container["name"] != "router":
            assert container["pod"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", [path.stem for path in value_files()])
def test_the_programs_take_the_arguments(name: str, tmp_path: Path) -> None:
    found = documents(name)
    asked = [container for container in containers(found) if container["name"] in PROGRAMS]
    assert asked
    for number, container in enumerate(asked):
        # What a Secret holds is known to the cluster only.
        environment = {entry["name"]: entry.get("value", "redis://store") for entry in container["env"]}
        # What LeaderWorkerSet's controller puts into a pod beside its leader's.
        arguments = [each.replace("$(LWS_WORKER_INDEX)", "1") for each in container["args"]]
        folder = tmp_path / str(number)
        folder.mkdir()
        models = models_file(found) if container["name"] == "router" else ""
        options = configured(PROGRAMS[container["name"]], arguments, environment, folder, models)
        assert options.drain_seconds + 5 < container["pod"]["terminationGracePeriodSeconds"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        listens = {"grpc": options.listen, "health": options.health_listen, "metrics": options.metrics_listen}
        if "http" in ports:
            listens["http"] = options.http_listen
        if "grpc" not in ports:
            assert options.nodes.follows
            del listens["grpc"]
        assert ("http" in ports) == (name in ("entry", "inference") and container["name"] == "router")
        host = "[::]" if name == "ipv6" else "0.0.0.0"
        assert {key: f"{host}:{port}" for key, port in ports.items()} == listens
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[kind]["grpc"]["port"] == ports["health"]


@pytest.mark.parametrize("name", [path.stem for path in examples()])
def test_services_find_pods_and_nothing_is_named_twice(name: str) -> None:
    found = documents(name)
    kinds = ("Deployment", "StatefulSet")
    labels = [d["spec"]["template"]["metadata"]["labels"].items() for d in found if d["kind"] in kinds]
    for service in of_kind(found, "Service").values():
        assert sum(service["spec"]["selector"].items() <= each for each in labels) == 1
        assert "publishNotReadyAddresses" not in service["spec"]
    named = [(document["kind"], document["metadata"]["name"]) for document in found]
    assert len(named) == len(set(named))


def test_production_holds_no_secret_and_names_its_own() -> None:
    found = documents("production")
    assert not of_kind(found, "Secret")
    deployment = of_kind(found, "Deployment")["r-sparsity-router-router"]
    mounted = {v["secret"]["secretName"] for v in deployment["spec"]["template"]["spec"]["volumes"] if "secret" in v}
    assert mounted == set(SECRETS.values())
    environment = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    url = next(entry for entry in environment if entry["name"] == "SPARSITY_REDIS_URL")
    assert url["valueFrom"]["secretKeyRef"] == {"name": "sparsity-redis", "key": "url"}
    assert "replicas" not in deployment["spec"], "an autoscaler sets them"


@pytest.mark.parametrize(
    ("settings", "ports"),
    [
        (('redis.url="rediss://cache:6380"',), [6380]),
        (('redis.url="redis://cache-2/3"',), [6379]),
        (('redis.url="redis://10.0.0.1"',), [6379]),
        (('redis.url="rediss://[fd00::1]:7001/0?ssl_check_hostname=false"',), [7001]),
        (('redis.url="redis://[fd00::1]"',), [6379]),
        (('redis.url="rediss+cluster://a:7000,b-1:7001,c"',), [7000, 7001, 6379]),
        (('redis.url="redis+sentinel://s-0:26380,s-1/m/0"',), [6379, 26380, 26379]),
        (('redis.url="redis+sentinel://s/m"', "networkPolicy.redisPorts=[7002]"), [7002, 26379]),
        (('redis.secretName="s"',), [6379]),
        (('redis.secretName="s"', "networkPolicy.redisPorts=[6380]"), [6380]),
    ],
)
def test_the_network_lets_through_what_the_url_says(settings: tuple[str, ...], ports: list[int]) -> None:
    assert egress_ports(rendered(*STORE, *settings)) == ports


def test_names_are_looked_up_on_ordinary_clusters() -> None:
    """By kube-dns and its like, by OpenShift's, and by NodeLocal DNSCache; or where the values say."""

    def lookups(found: list[dict[str, Any]], component: str) -> dict[str, Any]:
        rules = of_kind(found, "NetworkPolicy")[f"r-sparsity-router-{component}"]["spec"]["egress"]
        (rule,) = (rule for rule in rules if any(port["protocol"] == "UDP" for port in rule["ports"]))
        return dict(rule)

    for component in ("router", "worker-shared"):
        rule = lookups(documents("trial"), component)
        assert {(port["port"], port["protocol"]) for port in rule["ports"]} == {
            (number, protocol) for number in (53, 5353) for protocol in ("TCP", "UDP")
        }
        assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "openshift-dns"}}} in rule["to"]
        assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in rule["to"]
        own = lookups(documents("dns"), component)
        assert own["to"] == [{"ipBlock": {"cidr": "10.0.0.53/32"}}]
        assert {port["port"] for port in own["ports"]} == {1053}
        assert "to" not in lookups(rendered("networkPolicy.dns.peers=[]"), component)


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://otel-collector-2:4317", 4317),
        ("http://10.0.0.1:4318/", 4318),
        ("http://collector:4319/v1/9", 4319),
        ("https://[fd00::1]:4320", 4320),
        ("https://10.0.0.1", 443),
        ("https://collector-7/", 443),
    ],
)
def test_the_network_lets_traces_through(endpoint: str, port: int) -> None:
    found = rendered(f'tracing.endpoint="{endpoint}"')
    for component in ("router", "worker-shared"):
        assert egress_ports(found, component) == [port]


def test_the_router_reads_the_store_out_of_secrets(tmp_path: Path) -> None:
    pod = of_kind(documents("redis"), "Deployment")["r-sparsity-router-router"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {}
    for variable in (entry for entry in container["env"] if entry["name"].startswith("SPARSITY_REDIS")):
        key = variable.get("valueFrom", {}).get("secretKeyRef")
        environment[variable["name"]] = f"{key['name']}/{key['key']}" if key else variable["value"]
    read = read_url(configured("sparsity_router", container["args"], environment, tmp_path).redis_url)
    assert (read.kind, read.master, read.database) == ("sentinel", "policies", 2)
    assert read.hosts == (("sentinel-0.redis", 26380), ("fd00::7", 26381), ("sentinel-2.redis", 26379))
    assert read.login == Login("sparsity-redis/user", "sparsity-redis/password")
    assert read.sentinel_login == Login("", "sparsity-redis/sentinel-password")
    mount = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "redis-tls")
    assert read.tls == RedisTls(f"{mount}/ca.crt", f"{mount}/tls.crt", f"{mount}/tls.key")
    assert {"name": "redis-tls", "secret": {"secretName": "sparsity-redis-tls"}} in pod["volumes"]


def test_alerts_and_dashboards_go_along() -> None:
    found = documents("production")
    rules = of_kind(found, "PrometheusRule")["r-sparsity-router"]["spec"]["groups"]
    urls = {rule["annotations"]["runbook_url"] for group in rules for rule in group["rules"]}
    assert all(url.startswith("https://docs.example.com/sparsity/runbooks/") for url in urls)
    shown = [name for name in of_kind(found, "ConfigMap") if "-dashboard-" in name]
    assert len(shown) == len(list((CHART / "files" / "dashboards").glob("*.json")))


def test_alerts_lead_to_no_runbook_where_nobody_says_where_they_lie() -> None:
    (made,) = of_kind(rendered("monitoring.prometheusRule.enabled=true"), "PrometheusRule").values()
    rules = [rule for group in made["spec"]["groups"] for rule in group["rules"]]
    assert rules
    assert not [rule for rule in rules if "runbook_url" in rule["annotations"]]


def test_an_ingress_waits_for_answers_and_takes_long_prompts() -> None:
    """nginx gives up after 60 s of silence, and takes no body of more than 1 MB, unless it is told."""
    found = of_kind(documents("entry"), "Ingress")
    assert len(found) == 2
    for ingress in found.values():
        told = ingress["metadata"]["annotations"]
        wanted = {f"nginx.ingress.kubernetes.io/proxy-{what}-timeout": "3600" for what in ("read", "send")}
        assert (wanted | {"nginx.ingress.kubernetes.io/proxy-body-size": "64m"}).items() <= told.items()


def test_thresholds_of_alerts_are_values() -> None:
    def rules(name: str) -> dict[str, dict[str, Any]]:
        (made,) = of_kind(documents(name), "PrometheusRule").values()
        return {rule["alert"]: rule for group in made["spec"]["groups"] for rule in group["rules"]}

    shipped, own = rules("production"), rules("alerts")
    assert shipped.keys() - own.keys() == {"SparsityDensePoolSaturated"}
    for name, rule in own.items():
        assert {each.family for each in selectors(rule["expr"])} == {
            each.family for each in selectors(shipped[name]["expr"])
        }
    coverage = own["SparsityCoverageLow"]
    assert (coverage["expr"][-6:], coverage["for"], coverage["labels"]["severity"]) == (" < 0.7", "30m", "info")
    assert own["SparsityPolicyStale"]["expr"].endswith("> 60")
    assert own["SparsityShedding"]["expr"].endswith("> 0.01")
    first = own["SparsityFirstTokenBurnsBudget"]
    assert first["expr"].count('le="2.5"') == first["expr"].count("> 0.06") == 2
    assert not re.search(r"5\.0|0\.144", first["expr"])
    assert "later than 2.5 s" in first["annotations"]["summary"]
    same = own.keys() - {name for name in own if own[name]["expr"] != shipped[name]["expr"]}
    unchanged = {"SparsityLessAttentionThanPolicy", "SparsityHighRiskServedSparse", "SparsityPolicyLags"}
    assert same == {*unchanged, "SparsityBackgroundJobFailed"}


@pytest.mark.parametrize("seconds", FIRST_TOKEN_SECONDS)
def test_a_budget_of_seconds_asks_for_a_bucket_that_there_is(seconds: float) -> None:
    alert = "monitoring.prometheusRule.alerts.SparsityFirstTokenBurnsBudget"
    (made,) = of_kind(rendered(f"{alert}.seconds={seconds:g}", example="production"), "PrometheusRule").values()
    rules = [rule for group in made["spec"]["groups"] for rule in group["rules"]]
    (expression,) = (rule["expr"] for rule in rules if rule["alert"] == alert.rpartition(".")[2])
    assert expression.count(f'le="{floatToGoString(seconds)}"') == 2


def asked_by_keda(found: list[dict[str, Any]], pool: str) -> list[str]:
    triggers = of_kind(found, "ScaledObject")[f"r-sparsity-router-worker-{pool}"]["spec"]["triggers"]
    return [trigger["metadata"]["query"] for trigger in triggers]


def narrowed(query: str) -> dict[str, list[dict[str, str]]]:
    """What each metric of a query is narrowed by: label, operator and value."""
    found: dict[str, list[dict[str, str]]] = {}

    def visit(node: object) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            labels = {matcher.name: f"{matcher.op} {matcher.value}" for matcher in node.matchers.matchers}
            found.setdefault(node.name or "", []).append(labels)
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def test_keda_asks_for_the_tiers_of_its_pool() -> None:
    found = documents("keda")
    (waiting, kv), (wanted, _) = asked_by_keda(found, "shared"), asked_by_keda(found, "batch")
    common = {"namespace": "MatchOp.Equal ns", "app_kubernetes_io_instance": "MatchOp.Equal r"}
    assert narrowed(waiting) == {"sparsity_router_waiting": [{**common, "sparsity_tier": "MatchOp.Re dense|moderate"}]}
    tier = {**common, "sparsity_tier": "MatchOp.Re aggressive"}
    assert narrowed(wanted) == {"sparsity_router_waiting": [tier], "sparsity_router_wanted_total": [tier]}
    (narrow,) = narrowed(kv)["sparsity_worker_kv_use"]
    pods = narrow["pod"].removeprefix("MatchOp.Re ")
    assert re.fullmatch(pods, "r-sparsity-router-worker-shared-7c9f8d6b5-x2x4z")
    assert not re.fullmatch(pods, "r-sparsity-router-worker-shared-b-7c9f8d6b5-x2x4z")


def test_an_inference_pool_is_of_the_routers_and_the_route_leads_to_it() -> None:
    found = documents("inference")
    (pool,) = of_kind(found, "InferencePool").values()
    router = of_kind(found, "Deployment")["r-sparsity-router-router"]["spec"]["template"]
    assert pool["spec"]["selector"]["matchLabels"].items() <= router["metadata"]["labels"].items()
    ports = [port["containerPort"] for port in router["spec"]["containers"][0]["ports"] if port["name"] == "http"]
    assert [port["number"] for port in pool["spec"]["targetPorts"]] == ports
    (route,) = of_kind(found, "HTTPRoute").values()
    (leads,) = route["spec"]["rules"][0]["backendRefs"]
    assert (leads["kind"], leads["name"]) == ("InferencePool", pool["metadata"]["name"])
    (grpc,) = of_kind(found, "GRPCRoute").values()
    assert "kind" not in grpc["spec"]["rules"][0]["backendRefs"][0]


def test_the_adapter_tells_what_autoscalers_ask_for() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "monitoring" / "prometheus-adapter.yaml").read_text())["rules"]
    told = {kind: {rule["name"]["as"]: rule for rule in rules[kind]} for kind in ("external", "custom")}
    scalers = of_kind(documents("adapter"), "HorizontalPodAutoscaler")
    assert set(scalers) == {"r-sparsity-router-worker-batch", "r-sparsity-router-worker-shared"}
    waiting, kv = scalers["r-sparsity-router-worker-shared"]["spec"]["metrics"]
    assert waiting["external"]["metric"]["name"] in told["external"]
    assert kv["pods"]["metric"]["name"] in told["custom"]
    narrow = waiting["external"]["metric"]["selector"]
    assert narrow["matchLabels"] == {"app_kubernetes_io_instance": "r"}
    assert narrow["matchExpressions"] == [{"key": "sparsity_tier", "operator": "In", "values": ["dense", "moderate"]}]
    assert [each["target"]["averageValue"] for each in (waiting["external"], kv["pods"])] == ["4", "0.8"]
    for rule in (rule for kind in told.values() for rule in kind.values()):
        (series,) = selectors(rule["seriesQuery"])
        asked = rule["metricsQuery"].replace("<<.Series>>", series.metric)
        asked = asked.replace("<<.LabelMatchers>>", 'namespace="ns"').replace("<<.GroupBy>>", "pod")
        assert {each.family for each in selectors(asked)} == {series.family}
        assert {series.family} <= documented()
        assert set(rule["resources"]["overrides"]) <= series.labels


def test_cert_manager_makes_every_secret_that_pods_mount() -> None:
    found = documents("cert-manager")
    made = {each["spec"]["secretName"]: each["spec"] for each in of_kind(found, "Certificate").values()}
    mounted = {v["secret"]["secretName"] for pod in pods(found).values() for v in pod["volumes"] if "secret" in v}
    assert mounted - {"sparsity-leases"} == made.keys() - {"sparsity-authority"}
    router = pods(found)["router"]["containers"][0]["args"]
    assert made["worker-tls"]["dnsNames"] == [router[router.index("--worker-tls-name") + 1]]
    services = of_kind(found, "Service")
    names = [name.split(".")[0] for name in made["router-tls"]["dnsNames"]]
    assert set(names) <= services.keys()
    assert made["router-client-tls"]["usages"] == ["client auth"]


def test_keda_asks_for_metrics_that_are_documented() -> None:
    for name in ("keda", "numbers"):
        for scaler in of_kind(documents(name), "ScaledObject").values():
            for trigger in scaler["spec"]["triggers"]:
                assert {each.family for each in selectors(trigger["metadata"]["query"])} <= documented()


def test_what_keda_asks_is_what_prometheus_is_tried_with() -> None:
    (played,) = yaml.safe_load((Path(__file__).parent / "scaling_test.yaml").read_text())["tests"]
    found = documents("keda")
    asked = [query for pool in ("shared", "batch") for query in asked_by_keda(found, pool)]
    assert {case["expr"] for case in played["promql_expr_test"]} == set(asked)


def test_a_pool_goes_to_nothing_and_comes_back_for_what_nobody_else_holds() -> None:
    found = documents("keda")
    batch = of_kind(found, "ScaledObject")["r-sparsity-router-worker-batch"]["spec"]
    assert (batch["minReplicaCount"], batch["cooldownPeriod"]) == (0, 900)
    pool = '{"tiers":["moderate"],"profiles":["p"],"autoscaling":{"minReplicas":0}}'
    # Its tier has a worker in the shared pool: it comes for what waits, and not for all that is wanted.
    (query, _) = asked_by_keda(rendered(f"workers.burst={pool}", example="keda"), "burst")
    assert set(narrowed(query)) == {"sparsity_router_waiting"}


def test_keda_scales_down_by_the_behaviour_and_by_release() -> None:
    settings = ('defaults.autoscaling={"kind":"keda","cooldownSeconds":900}', 'monitoring.releaseLabel=""')
    scalers = of_kind(rendered(*settings, example="keda"), "ScaledObject")
    for scaler in scalers.values():
        behavior = scaler["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        assert behavior == {"scaleDown": {"stabilizationWindowSeconds": 900}}
        assert "instance" not in scaler["spec"]["triggers"][0]["metadata"]["query"]
    own = scalers["r-sparsity-router-worker-shared"]["spec"]
    assert "cooldownPeriod" not in own, "it would be of the way to zero replicas"
    (monitor,) = of_kind(documents("production"), "PodMonitor").values()
    assert "app.kubernetes.io/instance" in monitor["spec"]["podTargetLabels"]


@pytest.mark.parametrize(
    ("name", "pools"),
    [
        ("trial", {"shared": ["dense,moderate,aggressive", "smollm2-135m-moderate", "smollm2-135m-aggressive"]}),
        (
            "pools",
            {
                "aggressive": ["aggressive", "smollm2-135m-aggressive"],
                "dense": ["dense"],
                "moderate": ["moderate", "smollm2-135m-moderate"],
            },
        ),
        ("echo", {"shared": ["dense,moderate,aggressive"]}),
    ],
)
def test_a_pool_serves_its_tiers_and_the_router_knows_it(name: str, pools: dict[str, list[str]]) -> None:
    found = documents(name)
    deployments = of_kind(found, "Deployment")
    workers = {each: f"r-sparsity-router-worker-{each}" for each in pools}
    for kind, others in (("Deployment", {"router"}), ("PodDisruptionBudget", {"router"})):
        expected = {*workers.values(), *(f"r-sparsity-router-{each}" for each in others)}
        assert set(of_kind(found, kind)) == expected
    assert set(workers.values()) <= of_kind(found, "Service").keys() & of_kind(found, "NetworkPolicy").keys()
    for pool, said in pools.items():
        (container,) = deployments[workers[pool]]["spec"]["template"]["spec"]["containers"]
        args = container["args"]
        given = [args[place + 1] for place, word in enumerate(args) if word in ("--tiers", "--profile")]
        assert given == said
    (router,) = deployments["r-sparsity-router-router"]["spec"]["template"]["spec"]["containers"]
    asked = [router["args"][place + 1] for place, word in enumerate(router["args"]) if word == "--worker"]
    assert asked == [f"dns:///{each}.ns.svc.cluster.local:7001" for each in workers.values()]


def test_containers_and_variables_stand_beside_the_programs() -> None:
    found = pods(documents("extras"))
    worker, router = found["worker-shared"], found["router"]
    assert [each["name"] for each in worker["initContainers"]] == ["model", "warm"]
    assert [each["name"] for each in worker["containers"]] == ["worker", "log-shipper"]
    assert worker["containers"][0]["envFrom"] == [{"configMapRef": {"name": "nccl"}}]
    assert [each["name"] for each in router["containers"]] == ["router", "log-shipper"]
    assert router["containers"][0]["envFrom"] == [{"secretRef": {"name": "proxy"}}]
    assert found["valkey"]["containers"][0]["image"] == "docker.io/valkey/valkey:8.1.4"


def test_discovery_by_endpointslices_may_read_them_and_no_more() -> None:
    found = documents("keda")
    (role,) = of_kind(found, "Role").values()
    assert role["rules"] == [
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}
    ]
    pod = of_kind(found, "Deployment")["r-sparsity-router-router"]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is True
    assert "k8s:///ns/r-sparsity-router-worker-shared:7001" in pod["containers"][0]["args"]
    assert not of_kind(documents("trial"), "Role")
    own = rendered("networkPolicy.apiPorts=[16443]", example="keda")
    assert [{443, 6443} <= set(egress_ports(each)) for each in (found, own)] == [True, False]
    assert 16443 in egress_ports(own)


def test_a_folder_of_examples_is_not_packed(tmp_path: Path) -> None:
    subprocess.run([str(helm()), "package", str(CHART), "-d", str(tmp_path)], check=True, capture_output=True)
    (packed,) = tmp_path.glob("*.tgz")
    listing = subprocess.run(["tar", "tzf", str(packed)], check=True, capture_output=True, text=True).stdout
    assert "sparsity-router/files/alerts.yaml" in listing
    assert "examples/" not in listing


def test_a_registry_stands_before_every_image() -> None:
    found = {container["name"]: container["image"] for container in containers(documents("images"))}
    images = {container["image"] for container in containers(documents("images"))}
    team = "registry.example.com:5000/team"
    assert {found[name] for name in ("router", "import", "check", "valkey")} == {f"{team}/sparsity-router:1.2.3"}
    assert found["model"] == f"{team}/sparsity-worker:1.2.3"
    assert images - {found["router"], found["model"]} == {
        f"{team}/mirror/worker-of-ours:1.2.3",
        "other.example.com/sparsity-worker:1.2.3",
    }
    everywhere = containers(rendered('global.imageRegistry="all.example.com"'))
    assert all(container["image"].startswith("all.example.com/sparsity-") for container in everywhere)


def test_an_upgrade_waits_for_the_model() -> None:
    made = documents("slow")
    found = of_kind(made, "Deployment")
    # Routers too, which are ready once a worker is, and whom the job waits for.
    names = [f"r-sparsity-router-{name}" for name in ("router", "worker-shared", "worker-small")]
    assert [found[name]["spec"]["progressDeadlineSeconds"] for name in names] == [3900, 3900, 900]
    assert of_kind(made, "Job")["r-sparsity-router-policies"]["spec"]["activeDeadlineSeconds"] == 3900
    probe = found["r-sparsity-router-worker-shared"]["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 3600


def test_notes_say_how_long_helm_must_wait() -> None:
    """Longer than the 300 s that Helm gives a hook of itself: the one that writes policies waits for a worker."""
    for name in ("production", "slow", "model"):
        (file,) = (file for file in value_files() if file.stem == name)
        said = run("install", "r", str(CHART), "--dry-run=client", "-f", str(file))
        deployment = of_kind(documents(name), "Deployment")["r-sparsity-router-router"]
        seconds = deployment["spec"]["progressDeadlineSeconds"]
        assert seconds > 300
        assert f"--timeout {seconds}s" in said.partition("NOTES:")[2]


def test_installs_with_policies_are_shown_with_a_timeout() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("helm install") and "trial.yaml" not in line]
    head = (CHART / "examples" / "production.yaml").read_text().partition("model:")[0]
    assert lines
    assert all(" --timeout " in text for text in (*lines, head))


def test_what_peers_users_look_for_is_in_files_that_there_are() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    table = page.partition("## What users of others look for")[2].partition("\n## ")[0]
    named = {file for row in table.splitlines() for file in re.findall(r"`([\w./-]+\.yaml)`", row.rpartition(" | ")[2])}
    assert len(named) > 40
    places = (CHART, ROOT / "tests" / "deploy" / "values", ROOT / "tests" / "deploy", ROOT)
    assert not [file for file in named if not any((place / file).exists() for place in places)]
    # What is left is of what tests try, not of what users look for.
    assert {file.stem for file in value_files()} - {Path(file).stem for file in named} == {
        *("domain", "echoes", "numbers", "policies")
    }


def test_traces_go_by_the_protocol_that_is_asked_for() -> None:
    programs = [each for each in containers(documents("collector")) if each["name"] in ("router", "worker")]
    assert programs
    for program in programs:
        assert {"name": "OTEL_EXPORTER_OTLP_PROTOCOL", "value": "http/protobuf"} in program["env"]


def test_workers_take_the_routers_access_file() -> None:
    workers = [each for each in containers(documents("production")) if each["name"] == "worker"]
    assert workers
    for each in workers:
        file = each["args"][each["args"].index("--access") + 1]
        [mount] = [one for one in each["volumeMounts"] if file.startswith(one["mountPath"] + "/")]
        [volume] = [one for one in each["pod"]["volumes"] if one["name"] == mount["name"]]
        assert volume["secret"]["secretName"] == "sparsity-access"


def test_an_option_is_switched_off_by_false(tmp_path: Path) -> None:
    found = of_kind(rendered("workers.shared.options.overlap=false"), "Deployment")["r-sparsity-router-worker-shared"]
    (container,) = found["spec"]["template"]["spec"]["containers"]
    assert not configured("sparsity_worker", container["args"], {}, tmp_path).overlap


def test_numbers_are_written_as_digits(tmp_path: Path) -> None:
    (file,) = (file for file in value_files() if file.stem == "numbers")
    assert not re.search(r"[0-9]e\+", render(file))
    container = of_kind(documents("numbers"), "Deployment")["r-sparsity-router-router"]["spec"]["template"]["spec"]
    arguments, store = container["containers"][0]["args"], {"SPARSITY_REDIS_URL": "redis://store"}
    options = configured("sparsity_router", arguments, store, tmp_path)
    assert (options.queue_limit, options.queue_seconds, options.max_prompt_bytes) == (1_000_000, 1e-7, 2**24)


def test_each_component_has_its_own_nodes() -> None:
    found = pods(documents("nodes"))
    nodes = {name: pod.get("nodeSelector") for name, pod in found.items()}
    general = {"pool": "general"}
    assert [nodes[name] for name in ("router", "valkey", "import", "check")] == [general] * 4
    assert nodes["worker-shared"] == {"pool": "inference"}
    assert nodes["worker-anywhere"] is None
    assert nodes["worker-large"] == {"gpu": "h200"}
    tolerating = {name for name, pod in found.items() if pod.get("tolerations")}
    assert {"router", "valkey", "import", "check", "worker-shared", "worker-large"} <= tolerating
    assert "worker-anywhere" not in tolerating
    assert "affinity" not in found["router"]
    assert "affinity" in found["worker-shared"]
    assert found["valkey"]["priorityClassName"] == "inference"


@pytest.mark.parametrize("version", PACKAGES)
def test_users_and_rights_are_values(version: str) -> None:
    (file,) = (file for file in value_files() if file.stem == "openshift")
    found = pods([document for document in yaml.safe_load_all(render(file, helm_version=version)) if document])
    picked = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    for name in ("router", "worker-shared", "valkey", "import", "check"):
        assert found[name]["securityContext"] == picked
    assert found["worker-own"]["securityContext"] == {"runAsUser": 1000, "fsGroup": 2000}

    def rights(name: str) -> list[Any]:
        pod = found[name]
        return [each["securityContext"] for each in (*pod.get("initContainers", ()), *pod["containers"])]

    assert [each["readOnlyRootFilesystem"] for each in rights("worker-shared")] == [False, False]
    assert rights("worker-own") == [{}, {}]
    assert all(each["readOnlyRootFilesystem"] for name in ("router", "valkey", "import") for each in rights(name))


def test_a_claim_of_a_container_is_its_pods() -> None:
    found = pods(documents("claims"))
    worker = found["worker-shared"]
    assert worker["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]
    assert worker["containers"][0]["resources"]["claims"] == [{"name": "gpu"}]
    assert "resourceClaims" not in found["router"]


def test_an_upgrade_leaves_a_dense_worker() -> None:
    def unavailable(found: list[dict[str, Any]], pool: str) -> tuple[int, int]:
        strategy = of_kind(found, "Deployment")[f"r-sparsity-router-worker-{pool}"]["spec"]["strategy"]["rollingUpdate"]
        return strategy["maxUnavailable"], strategy["maxSurge"]

    assert unavailable(documents("trial"), "shared") == (0, 1)
    found = documents("rollout")
    assert [unavailable(found, pool) for pool in ("shared", "dense", "batch")] == [(1, 0), (1, 0), (0, 4)]
    # Where there is no GPU but the one in use, on the operator's word.
    alone = of_kind(documents("one-gpu"), "Deployment")["r-sparsity-router-worker-shared"]["spec"]
    assert alone["strategy"] == {"type": "Recreate"}


def test_routers_are_replaced_as_the_values_say() -> None:
    def update(name: str) -> dict[str, Any]:
        strategy = of_kind(documents(name), "Deployment")["r-sparsity-router-router"]["spec"]["strategy"]
        return dict(strategy["rollingUpdate"])

    assert update("trial") == {"maxUnavailable": 0, "maxSurge": 1}
    assert update("rollout") == {"maxUnavailable": 1, "maxSurge": 0}


def test_policies_are_read_before_anything_is_changed(tmp_path: Path) -> None:
    """By a hook that fails at the first mistake, with what it needs made before it."""
    for name, code in (("policies", 2), ("production", 0)):
        found = documents(name)
        job, files = (of_kind(found, kind)["r-sparsity-router-policies-check"] for kind in ("Job", "ConfigMap"))
        for each in (job, files):
            assert each["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert int(files["metadata"]["annotations"]["helm.sh/hook-weight"]) < 0
        assert job["spec"]["backoffLimit"] == 0
        pod = job["spec"]["template"]["spec"]
        assert pod["restartPolicy"] == "Never"
        assert "serviceAccountName" not in pod, "there is none yet"
        assert {"name": "policies", "configMap": {"name": files["metadata"]["name"]}} in pod["volumes"]
        for file, text in files["data"].items():
            (tmp_path / file).write_text(text)
        *command, folder = pod["containers"][0]["command"]
        assert folder == pod["containers"][0]["volumeMounts"][0]["mountPath"]
        program = [str(Path(sys.executable).parent / command[0]), *command[1:], str(tmp_path)]
        ended = subprocess.run(program, capture_output=True, text=True, check=False)
        assert ended.returncode == code, ended.stderr
        assert ("tokns" in ended.stderr) is bool(code)
        for file in files["data"]:
            (tmp_path / file).unlink()


def test_the_check_before_an_install_needs_nothing_that_the_release_makes() -> None:
    """Certificates and Secrets of its `extraObjects` come after it: a pod that mounts them would never start."""
    key = 'operatorKey.secretName="sparsity-operator"'
    found = rendered('policies.documents={"a":{"domain":"a"}}', key, example="cert-manager")
    jobs = of_kind(found, "Job")
    check, writes = (jobs[f"r-sparsity-router-{name}"]["spec"]["template"]["spec"] for name in CHECKED)
    (lint,), (written,) = check["containers"], writes["containers"]
    assert [volume["name"] for volume in check["volumes"]] == ["policies", "tmp"]
    assert lint["env"] == [{"name": "HOME", "value": "/tmp"}]
    assert "router-tls" in {volume.get("secret", {}).get("secretName") for volume in writes["volumes"]}
    assert {"SPARSITY_KEY", "SPARSITY_TLS_CA"} <= {each["name"] for each in written["env"]}


def test_every_pod_has_the_releases_account_once_there_is_one() -> None:
    """Pull secrets and OpenShift's rights may hang on it; what runs before an install has none of the release's."""
    asked = 'policies.documents={"a":{"domain":"a"}}'
    for settings, account, early in (
        ((asked,), "r-sparsity-router", None),
        ((asked, 'serviceAccount={"create":false,"name":"ours"}'), "ours", "ours"),
    ):
        found = rendered(*settings)
        check, *_ = (of_kind(found, "Job")[f"r-sparsity-router-{name}"]["spec"]["template"]["spec"] for name in CHECKED)
        assert check.get("serviceAccountName") == early
        assert {pod["serviceAccountName"] for pod in pods(found).values() if pod != check} == {account}


def test_the_job_ends_at_once_where_the_router_refuses() -> None:
    job = of_kind(documents("production"), "Job")["r-sparsity-router-policies"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"containerName": "import", "operator": "In", "values": [2, 6]}}
    assert job["template"]["spec"]["restartPolicy"] == "Never", "a failure policy needs it"
    assert job["template"]["spec"]["containers"][0]["name"] == "import"
    own = of_kind(documents("keda"), "Job")["r-sparsity-router-policies-check"]["spec"]["template"]["spec"]
    assert {"name": "policies", "configMap": {"name": "our-policies"}} in own["volumes"]


def test_the_last_policies_may_outlive_pods() -> None:
    claim = {"persistentVolumeClaim": {"claimName": "snapshots"}}
    for name, state in (("trial", {"emptyDir": {}}), ("snapshot", claim)):
        router_pod = pods(documents(name))["router"]
        (volume,) = (volume for volume in router_pod["volumes"] if volume["name"] == "state")
        assert volume == {"name": "state"} | state
        mount = next(each for each in router_pod["containers"][0]["volumeMounts"] if each["name"] == "state")
        args = router_pod["containers"][0]["args"]
        assert args[args.index("--snapshot-file") + 1].startswith(mount["mountPath"])


def test_routers_need_nothing_of_the_model_but_its_tokenizer() -> None:
    def model(found: list[dict[str, Any]], name: str = "router") -> tuple[dict[str, Any], dict[str, Any]]:
        pod = pods(found)[name]
        (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "model")
        (mount,) = (mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "model")
        assert pod["containers"][0]["args"][pod["containers"][0]["args"].index("--model") + 1] == mount["mountPath"]
        return volume, mount

    found = documents("tokenizer")
    assert model(found)[0] == {"name": "model", "emptyDir": {}}
    (init,) = pods(found)["router"]["initContainers"]
    assert init["command"] == ["cp", "-rL", "/files/.", model(found)[1]["mountPath"] + "/"]
    claim = {"claimName": "huge-model-of-one-node", "readOnly": True}
    assert model(found, "worker-shared")[0] == {"name": "model", "persistentVolumeClaim": claim}
    own = rendered('router.tokenizer={"image":"","existingClaim":"small","subPath":"llama"}', example="production")
    volume, mount = model(own)
    assert volume["persistentVolumeClaim"]["claimName"] == "small"
    assert mount["subPath"] == "llama"
    assert "initContainers" not in pods(own)["router"]
