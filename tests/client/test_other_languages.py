"""The contract in other languages: its options, and the page's program in TypeScript, generated, checked and run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from google.protobuf.descriptor_pb2 import FileOptions
from google.rpc import error_details_pb2
from sparsity.v1 import fleet_pb2, inference_pb2, policy_pb2, worker_pb2
from support.node import built, packages, run
from support.routers.rig import DENSE, rig
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "clients.md"
NPM = {
    "@bufbuild/protobuf": "2.17.0",
    "@bufbuild/protoc-gen-es": "2.13.0",
    "@connectrpc/connect": "2.1.2",
    "@connectrpc/connect-node": "2.1.2",
    "@types/node": "20.19.43",
    "typescript": "7.0.2",
}


@pytest.mark.parametrize("file", [fleet_pb2, inference_pb2, policy_pb2, worker_pb2], ids=lambda file: file.__name__)
def test_the_contract_names_its_packages_in_go_and_java(file: object) -> None:
    options: FileOptions = file.DESCRIPTOR.GetOptions()  # type: ignore[attr-defined]
    found = (options.go_package, options.java_package, options.java_multiple_files)
    assert found == ("sparsity/v1;sparsityv1", "com.sparsity.v1", True)


def program(language: str) -> str:
    """The page's example in a language."""
    (found,) = re.findall(rf"(?m)^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm")
async def test_the_pages_typescript_is_answered(tmp_path: Path) -> None:
    template = yaml.safe_load((ROOT / "proto" / "buf.gen.yaml").read_text())
    template["plugins"] = [each for each in template["plugins"] if each.get("local") == "protoc-gen-es"]
    folder, modules = tmp_path / "program", packages(**NPM)
    folder.mkdir()
    (folder / "buf.gen.yaml").write_text(yaml.safe_dump(template))
    theirs = tmp_path / "googleapis" / "google" / "rpc"
    theirs.mkdir(parents=True)
    shutil.copy(Path(error_details_pb2.__file__).with_name("error_details.proto"), theirs)
    for protos in (ROOT / "proto", tmp_path / "googleapis"):
        await run("buf", "generate", str(protos), "--template", "buf.gen.yaml", folder=folder, modules=modules)
    worker = FakeWorker("dense", DENSE, tiny_model(tmp_path / "model"))
    async with rig(tmp_path / "model", worker) as r:
        address = r.address
        source = program("typescript").replace("127.0.0.1:7000", address)
        assert address in source
        said = await run("node", str(await built(source, folder, modules)), folder=folder, modules=modules)
    text, decided, refused = said.splitlines()
    assert text == "abc"
    assert decided == "DENSE UNKNOWN_DOMAIN"
    assert refused.startswith("InvalidArgument INVALID_REQUEST ")
    assert len(worker.received) == 1
