"""What the CPU's engine leaves out when it starts: modules of other models, and a library for GPUs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sparsity_worker.engine.model_modules import DISABLED, disable_other_models


def folder_of(model: Path, *architectures: str) -> Path:
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps({"architectures": architectures}))
    return model


@pytest.fixture
def modules() -> Path:
    found = importlib.util.find_spec("sglang")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0], "srt", "models")


@pytest.mark.parametrize(
    ("architecture", "kept"),
    [
        ("LlamaForCausalLM", {"llama"}),
        ("Qwen2ForCausalLM", {"qwen2"}),
        ("MixtralForCausalLM", {"mixtral", "mixtral_quant"}),
    ],
)
def test_sglang_leaves_out_what_defines_other_models(
    tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, kept: set[str]
) -> None:
    monkeypatch.setattr(os, "environ", {})
    disable_other_models(folder_of(tmp_path, architecture), modules)
    assert {path.stem for path in modules.glob("*.py")} - set(os.environ[DISABLED].split(",")) == kept


def test_a_model_that_no_module_defines_and_who_says_it_otherwise_keep_them(
    tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    for architectures in ((), ("SomebodysForCausalLM",)):
        disable_other_models(folder_of(tmp_path, *architectures), modules)
        assert DISABLED not in os.environ
    os.environ[DISABLED] = "llava"
    disable_other_models(folder_of(tmp_path, "LlamaForCausalLM"), modules)
    assert os.environ[DISABLED] == "llava"


@pytest.mark.parametrize("cpu", [True, False])
def test_flashinfer_is_as_if_it_were_not_installed_on_the_cpu_and_nowhere_else(cpu: bool) -> None:
    code = (
        "import importlib.util\n"
        "from sparsity_worker.plugin.platform import prepare\n"
        "prepare()\n"
        "print(importlib.util.find_spec('flashinfer') is None)"
    )
    environment = os.environ | {"SGLANG_USE_CPU_ENGINE": str(int(cpu))}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(cpu)
