"""A policy folder in which anything may lie."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
from sparsity.v1 import fleet_pb2, fleet_pb2_grpc, policy_pb2
from sparsity_policies.documents.document import MAX_BYTES
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.documents.yamlfile import dump_yaml
from sparsity_policies.storage.folder import PolicyFolder
from sparsity_router.config import RouterConfig
from support.routers.router import Router, running
from support.tiny import tiny_model

POLICIES = {policy.domain: policy for policy in shipped_policies("small-context")}


def write(folder: Path, name: bytes, text: str) -> None:
    with open(os.fsencode(folder) + b"/" + name, "w", encoding="utf-8") as file:
        file.write(text)


@pytest_asyncio.fixture
async def router(tmp_path: Path) -> AsyncIterator[Router]:
    folder = tmp_path / "policies"
    folder.mkdir()
    write(folder, b"rag\xff.yaml", dump_yaml(POLICIES["rag"]))
    write(folder, b"odd\xff.yaml", "domain: odd\nrisk: huge\n")
    write(folder, b"late.yaml", dump_yaml(POLICIES["code"]))
    # Past what a message can tell.
    os.utime(folder / "late.yaml", (1e12, 1e12))
    config: dict[str, Any] = {"listen": "127.0.0.1:0", "drain_seconds": 0.1, "policy_dir": folder}
    async with running(RouterConfig(tiny_model(tmp_path), ("127.0.0.1:1",), None, **config)) as router:
        yield router


async def test_files_of_odd_names_and_times_are_told_of(router: Router) -> None:
    listed = await router.policy.ListPolicies(policy_pb2.ListPoliciesRequest())
    assert [one.policy.domain for one in listed.policies] == ["code", "rag"]
    assert (await router.get("rag")).actor == "rag\\udcff.yaml"
    assert (await router.get("code")).actor == "late.yaml"
    told = await router.policy.WatchPolicies(policy_pb2.WatchPoliciesRequest()).read()
    assert list(told.rejected_domains) == ["odd\\udcff"]
    stub: Any = fleet_pb2_grpc.FleetServiceStub(router.channel)
    fleet = await stub.GetFleet(fleet_pb2.GetFleetRequest())
    assert any("odd\\udcff" in problem for each in fleet.routers for problem in each.problems)


async def test_a_file_too_large_for_a_policy_is_told_and_not_read(tmp_path: Path) -> None:
    write(tmp_path, b"rag.yaml", dump_yaml(POLICIES["rag"]))
    (tmp_path / "large.yaml").touch()
    # More than any machine has, and none of it on the disk.
    os.truncate(tmp_path / "large.yaml", 2**42)
    contents = await PolicyFolder(tmp_path).read()
    assert [one.policy.domain for one in contents.policies] == ["rag"]
    assert contents.rejected == {"large": f"is {2**42} bytes; a file of a policy has {4 * MAX_BYTES} at most"}
