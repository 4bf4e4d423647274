"""What the nodes of one engine must have alike, by what each tells the others at start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sparsity_rpc.errors import ConfigurationError
from sparsity_worker.__main__ import read_config
from sparsity_worker.config import ModelFacts
from sparsity_worker.engine.launching import engine_arguments
from sparsity_worker.plugin.ranks import facts_of, refuse_unlike
from support.tiny import tiny_model

TOKENS, WEIGHTS = 8192, 200_000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Whose weights only have a size, and an end that tells them apart."""
    folder = tiny_model(tmp_path / "model")
    (folder / "model-00001-of-00001.safetensors").write_bytes(bytes(WEIGHTS - 1) + b"a")
    (folder / "model.safetensors.index.json").write_text("{}")
    return folder


def told(model: Path, *options: str, rank: int = 0, tokens: int = TOKENS) -> dict[str, Any]:
    """What a rank tells, in a scheduler of SGLang's with room for so many tokens."""
    given = ["--worker-id", "w", "--tiers", "dense", "--nodes", "2", "--nodes-address", "leader.example:7003"]
    given += ["--node-rank", f"{rank}", "--tensor-parallel", "2", "--dtype", "float32", "--model", str(model)]
    config = read_config([*given, *options], {})
    arguments = engine_arguments(config, ModelFacts.read(config.model_path), {})
    return facts_of(SimpleNamespace(server_args=SimpleNamespace(**arguments), max_total_num_tokens=tokens))


def difference(*every: dict[str, Any]) -> str:
    """What the refusal names."""
    with pytest.raises(ConfigurationError, match="--nodes: must run alike") as refused:
        refuse_unlike(every)
    return str(refused.value)


def test_nodes_of_one_model_run_alike_wherever_it_lies(model: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(model, tmp_path / "elsewhere")
    (elsewhere / "README.md").write_text("of no weight")
    refuse_unlike([told(model), told(elsewhere, rank=1)])
    # Nobody feels other limits where the pool comes out alike.
    refuse_unlike([told(model), told(model, "--max-total-tokens", "9000", "--mem-fraction", "0.5", rank=1)])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--dtype", "bfloat16"), "--dtype"),
        (("--load-format", "dummy"), "--load-format"),
        (("--max-requests", "3"), "--max-requests"),
        (("--chunked-prefill-tokens", "512"), "--chunked-prefill-tokens"),
        (("--dense-backend", "intel_amx"), "--dense-backend, or what `sparsity worker tune` found"),
    ],
)
def test_an_option_that_differs_is_named(options: tuple[str, ...], named: str, model: Path) -> None:
    assert f"differ in {named}; start all with the same" in difference(told(model), told(model, *options, rank=1))


def test_all_that_differs_is_named(model: Path) -> None:
    one = told(model)
    profiles = one | {"json_model_override_args": '{"sparsity_tiers": {}}', "page_size": 32}
    assert "--profile, or what `sparsity worker tune` found; the profiles' pages; start" in difference(
        one, one, profiles
    )


def test_pools_of_other_sizes_are_refused(model: Path) -> None:
    said = difference(told(model), told(model, rank=1, tokens=TOKENS - 64))
    assert "differ in the room for tokens (--max-total-tokens, --mem-fraction, the devices' memory);" in said


@pytest.mark.parametrize(
    ("file", "contents"),
    [
        ("config.json", None),
        ("model.safetensors.index.json", b'{"weight_map": {}}'),
        ("model-00001-of-00001.safetensors", bytes(WEIGHTS)),
        ("model-00001-of-00001.safetensors", bytes(WEIGHTS - 2) + b"a"),
        ("model-00002-of-00002.safetensors", b"more"),
    ],
    ids=["config", "index", "weights", "shorter", "another"],
)
def test_another_model_under_the_same_name_is_refused(
    file: str, contents: bytes | None, model: Path, tmp_path: Path
) -> None:
    older = shutil.copytree(model, tmp_path / "older" / model.name)
    if contents is None:
        contents = json.dumps(json.loads((older / file).read_text()) | {"rope_theta": 5e5}).encode()
    (older / file).write_bytes(contents)
    assert "differ in the files of --model;" in difference(told(model), told(older, rank=1))


def test_a_context_that_differs_is_named_too(model: Path, tmp_path: Path) -> None:
    longer = shutil.copytree(model, tmp_path / "longer")
    tiny_model(longer, context=1024)
    assert "differ in the model's context; the files of --model;" in difference(told(model), told(longer, rank=1))
