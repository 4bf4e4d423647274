"""What the chart renders, for tests that look into it."""

from __future__ import annotations

from typing import Any

from charts import CHART, read, render, run, value_files


def documents(name: str) -> list[dict[str, Any]]:
    """What a value file of the chart, or of its tests, renders."""
    (file,) = (file for file in value_files() if file.stem == name)
    return read(render(file))


def of_kind(found: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """The objects of one kind by their names."""
    return {document["metadata"]["name"]: document for document in found if document["kind"] == kind}


def containers(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every container of every pod, with its pod's spec beside it."""
    pods = [document["spec"] for document in found if document["kind"] == "Pod"]
    pods += [template["spec"] for document in found for template in templates(document)]
    return [{**c, "pod": pod} for pod in pods for c in (*pod.get("initContainers", ()), *pod["containers"])]


def templates(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates of an object: two of a group of nodes, its leader's first."""
    if document["kind"] == "LeaderWorkerSet":
        group = document["spec"]["leaderWorkerTemplate"]
        return [group["leaderTemplate"], group["workerTemplate"]]
    return [document["spec"]["template"]] if document["kind"] in ("Deployment", "StatefulSet", "Job") else []


def pods(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The specs of all pods by the names of what makes them, without the release's."""
    made = {container["pod"]["containers"][0]["name"]: container["pod"] for container in containers(found)}
    for name, deployment in of_kind(found, "Deployment").items():
        made[name.removeprefix("r-sparsity-router-")] = deployment["spec"]["template"]["spec"]
    return made


def models_file(found: list[dict[str, Any]]) -> str:
    """What routers read by `--models`, and nothing of a release of one model."""
    mounted = {volume["name"]: volume for volume in pods(found)["router"]["volumes"]}
    if "models" not in mounted:
        return ""
    text: str = of_kind(found, "ConfigMap")[mounted["models"]["configMap"]["name"]]["data"]["models.yaml"]
    return text


def rendered(*settings: str, example: str = "trial") -> list[dict[str, Any]]:
    """What an example renders with some values set anew."""
    sets = [word for setting in settings for word in ("--set-json", setting)]
    command = (
        "template",
        "r",
        str(CHART),
        "--namespace",
        "ns",
        "-f",
        str(CHART / "examples" / f"{example}.yaml"),
        *sets,
    )
    return read(run(*command))


def egress_ports(found: list[dict[str, Any]], component: str = "router") -> list[int]:
    """The ports of rules without a peer: of what lies outside."""
    rules = of_kind(found, "NetworkPolicy")[f"r-sparsity-router-{component}"]["spec"]["egress"]
    return [port["port"] for rule in rules if "to" not in rule for port in rule["ports"] if port["protocol"] == "TCP"]
