from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from sparsity_quality.subjects.model import LocalModel
from sparsity_worker.profiles.profile import Profile, parse_profile
from support.tiny import tiny_weights

PROFILE = {
    "schema": "sparsity.profile/v1", "name": "tiny-aggressive", "version": 1, "tier": "aggressive",
    "block_size": 16, "sub_block": 4, "dense_layers": [0],
    "prefill": {
        "sparse_from": 600, "score": "sampled_rows", "rule": "top_p", "threshold": 0.4, "query_tile": 32,
        "query_stride": 8, "peak": 4.0, "sink": 16, "window": 32, "dense_last_tiles": 1,
    },
    "decode": {"sparse_from": 600, "budget": 128, "sink": 16, "recent": 32},
}  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def model(folder: Path) -> LocalModel:
    return LocalModel(folder, 2048)


@pytest.fixture(scope="session")
def profile() -> Profile:
    return parse_profile(PROFILE, "test")


@pytest.fixture(scope="session")
def profile_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "tiny.yaml"
    path.write_text(yaml.safe_dump(PROFILE))
    return path
