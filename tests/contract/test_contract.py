"""The wire contract, the packages' boundaries, and the house rules that tools do not check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from sparsity import errors
from sparsity.v1 import inference_pb2, policy_pb2
from sparsity_policies import model

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "sparsity": "proto/sparsity",
    "sparsity_policies": "policies/sparsity_policies",
    "sparsity_router": "router/sparsity_router",
    "sparsity_client": "client/sparsity_client",
    "sparse_kernels": "kernels/sparse_kernels",
    "sparsity_worker": "worker/sparsity_worker",
    "sparsity_quality": "quality/sparsity_quality",
}
ALLOWED = {
    "sparsity": set(),
    "sparsity_policies": {"sparsity"},
    "sparsity_client": {"sparsity"},
    "sparsity_router": {"sparsity", "sparsity_policies", "sparsity_client"},
    "sparse_kernels": set(),
    "sparsity_worker": {"sparsity", "sparse_kernels"},
    "sparsity_quality": {"sparsity", "sparse_kernels", "sparsity_worker"},
}


def imports(package: str) -> set[str]:
    found: set[str] = set()
    for path in (ROOT / PACKAGES[package]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    assert imports(package) & PACKAGES.keys() <= ALLOWED[package] | {package}


@pytest.mark.parametrize("package", ["sparsity", "sparsity_policies", "sparsity_router", "sparsity_client"])
def test_the_router_side_never_loads_torch_or_sglang(package: str) -> None:
    assert not imports(package) & {"torch", "sglang", "transformers"}


def test_importing_the_router_loads_no_torch() -> None:
    code = "import sys, sparsity_router.server, sparsity_router.cli.main; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_committed_stubs_are_fresh() -> None:
    subprocess.run([sys.executable, str(ROOT / "tools" / "protos.py"), "--check"], check=True)


@pytest.mark.parametrize(
    ("ours", "wire", "prefix"),
    [
        (model.Tier, inference_pb2.Tier, "TIER_"),
        (model.Reason, inference_pb2.Reason, "REASON_"),
        (model.Risk, policy_pb2.Risk, "RISK_"),
        (model.Scope, policy_pb2.OverrideScope, "OVERRIDE_SCOPE_"),
    ],
)
def test_our_enums_equal_those_on_the_wire(ours, wire, prefix: str) -> None:
    named = {name.removeprefix(prefix): value for name, value in wire.items() if value}
    assert named == {member.name: member.value for member in ours}


def test_every_error_has_a_status_and_stands_in_the_tree() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    for kind in kinds:
        assert isinstance(kind.code, grpc.StatusCode)
        assert kind.__name__ in (errors.__doc__ or "")


def test_modules_are_short() -> None:
    long = {}
    for folder in PACKAGES.values():
        for path in (ROOT / folder).rglob("*.py"):
            lines = len(path.read_text().splitlines())
            if "_pb2" not in path.name and lines > 300:
                long[str(path)] = lines
    assert not long


def test_files_name_no_registry_and_no_path_of_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    hosts = re.compile(r"https?://[^\s/]*(pypi|pythonhosted|npmjs|debian)[^\s]*|file:///")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in (".py", ".txt", ".toml", ".md", ".yaml", ".json") and path.name != Path(__file__).name:
            assert not hosts.search(path.read_text()), name
