"""The wire contract, and house rules that tools do not check."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from sparsity.v1 import inference_pb2, policy_pb2
from sparsity_policies import model
from sparsity_rpc import errors
from support.ports import BLOCK, free_port
from support.slow import SLOW

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("imported", "left_out"),
    [
        ("sparsity_router.server, sparsity_cli.main", "torch"),
        ("sparsity_router.server, sparsity_policies.documents.confined", "prompt_toolkit"),
    ],
)
def test_importing_the_router_loads_nothing_large_that_it_has_no_use_for(imported: str, left_out: str) -> None:
    code = f"import sys, {imported}; assert {left_out!r} not in sys.modules"
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


def test_files_name_no_registry_and_no_path_of_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    hosts = re.compile(r"https?://[^\s/]*(pypi|pythonhosted|npmjs|debian)[^\s]*|file:///")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in (".py", ".txt", ".toml", ".md", ".yaml", ".json") and path.name != Path(__file__).name:
            assert not hosts.search(path.read_text()), name


def test_channels_are_opened_in_one_place_which_goes_past_proxies() -> None:
    opened = re.compile(r"\b(grpc|aio)\.(in)?secure_channel\(")
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    places = [name for name in listed.stdout.split() if not name.startswith("tests/")]
    assert {name for name in places if opened.search((ROOT / name).read_text())} == {"client/sparsity_rpc/tls.py"}


def test_a_reason_to_be_slow_outlives_no_file() -> None:
    assert not [place for place in SLOW if not (ROOT / place).exists()]


def test_processes_of_tests_are_given_no_port_twice() -> None:
    own = {free_port() for _ in range(2 * BLOCK)}
    command = [sys.executable, "-c", "from support.ports import free_port; print(free_port())"]
    other = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, check=True)
    assert int(other.stdout) not in own
    assert len(own) > BLOCK // 2
    found = [path for path in (ROOT / "tests").rglob("*.py") if "addresses import free_port" in path.read_text()]
    assert found == [Path(__file__)], "the product's search finds what another process is about to listen on"
