"""The file of `--models` is read whole, and what is wrong in it is named."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from sparsity_policies.documents.document import parse_bands
from sparsity_policies.documents.shipped import bands_of
from sparsity_policies.model import Risk
from sparsity_router.__main__ import read_config
from sparsity_router.fronting import open_models
from sparsity_router.models.document import Fronted, read_models
from sparsity_rpc.errors import ConfigurationError
from support.ports import free_port
from support.routers.rig import BANDS
from support.tiny import tiny_model

GOOD = {"name": "a", "folder": "m", "workers": ["127.0.0.1:1"]}


def write(folder: Path, document: Any) -> Path:
    for name in ("m", "n"):
        tiny_model(folder / name)
    path = folder / "models.yaml"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_it_says_where_each_model_and_its_workers_are(tmp_path: Path) -> None:
    other = {"name": "b", "folder": str(tmp_path / "n"), "workers": ["dns:///w:1", "127.0.0.1:2"], "aliases": ["o/c"]}
    first, second = read_models(write(tmp_path, {"models": [GOOD, other]}))
    assert first == Fronted("a", tmp_path / "m", ("127.0.0.1:1",))
    assert second == Fronted("b", tmp_path / "n", ("dns:///w:1", "127.0.0.1:2"), ("o/c",))
    assert not first.bands
    assert second.known_as == {"b", "c", "o/c", "n"}


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("models: [", "cannot be read"),
        ([GOOD], "must have a list `models`, and no other field"),
        ({"models": []}, "must have a list `models`"),
        ({"models": [GOOD], "more": 1}, "must have a list `models`, and no other field"),
        ({"models": ["a"]}, r"models\[0\]: must be a mapping with fields of name, folder, workers, aliases, bands"),
        ({"models": [GOOD, GOOD | {"nam": "b"}]}, r"models\[1\]: must be a mapping with fields of name"),
        ({"models": [{"name": "a", "folder": "m"}]}, r"models\[0\]: workers: is missing"),
        ({"models": [GOOD | {"name": ""}]}, r"models\[0\]: name: must be text of 1 to 256 printable characters"),
        ({"models": [GOOD | {"name": "a\n"}]}, r"models\[0\]: name: must be text of 1 to 256 printable characters"),
        ({"models": [GOOD | {"name": 7}]}, r"models\[0\]: name: must be text"),
        ({"models": [GOOD | {"workers": "127.0.0.1:1"}]}, r"models\[0\]: workers: must be a list, not '127"),
        ({"models": [GOOD | {"workers": []}]}, r"models\[0\]: workers: give the address of at least one"),
        ({"models": [GOOD | {"aliases": [None]}]}, r"models\[0\]: aliases: must be text"),
        (
            {"models": [GOOD | {"folder": "none"}]},
            r"models\[0\]: folder: .*none has no tokenizer.json; give the folder",
        ),
        ({"models": [GOOD | {"bands": {"high": BANDS}}]}, r"models\[0\]: bands: must be a mapping of low, elevated to"),
        (
            {"models": [GOOD | {"bands": {"low": BANDS[1:]}}]},
            r"models\[0\]: bands: low: bands\[0\].from_tokens: prompts",
        ),
        ({"models": [GOOD | {"bands": {"low": [1]}}]}, r"models\[0\]: bands: low: bands\[0\]: must be a mapping"),
        ({"models": [GOOD | {"aliases": ["a"]}]}, "the name 'a' stands 2 times; it must stand once"),
        ({"models": [GOOD, GOOD | {"name": "b"}]}, "the worker '127.0.0.1:1' stands 2 times; it must stand once"),
        ({"models": [GOOD, {"name": "b", "folder": "m", "workers": ["w:1"], "aliases": ["a"]}]}, "the name 'a' stands"),
        (
            {"models": [GOOD, {"name": "b", "folder": "m", "workers": ["w:1"]}]},
            "'m' is how workers of 2 models may call theirs; name these, or their folders, apart",
        ),
        (
            {"models": [GOOD, {"name": "m", "folder": "n", "workers": ["w:1"]}]},
            "'m' is how workers of 2 models may call theirs",
        ),
        (
            {"models": [GOOD, {"name": "o/a", "folder": "n", "workers": ["w:1"]}]},
            "'a' is how workers of 2 models may call theirs",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, document: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^--models: .*models.yaml: .*{problem}"):
        read_models(write(tmp_path, document))


@pytest.mark.parametrize(
    ("file", "workers", "problem"),
    [
        ("tokenizer.json", "w:1", "folder: .*m: ValueError: Cannot instantiate Tokenizer"),
        ("config.json", "w:1", "folder: .*m: JSONDecodeError"),
        ("generation_config.json", "w:1", "folder: .*generation_config.json: JSONDecodeError"),
        ("chat_template.jinja", "w:1", "folder: its chat template cannot be read"),
        ("", "w", "workers: must be host:port"),
        ("", "ftp://w:1", "workers: ftp://w:1: must be host:port"),
    ],
)
def test_what_a_model_is_not_opened_for_is_named_by_its_field(
    tmp_path: Path, file: str, workers: str, problem: str
) -> None:
    path = write(tmp_path, {"models": [GOOD | {"workers": [workers]}]})
    if file:
        (tmp_path / "m" / file).write_text("{% if")
    config = read_config(["--models", str(path), "--policy-dir", str(tmp_path)], {})
    with pytest.raises(ConfigurationError, match=rf"^--models: a: {problem}"):
        open_models(config, None, None, None)


def test_one_way_of_saying_it_at_a_time(tmp_path: Path) -> None:
    file = write(tmp_path, {"models": [GOOD]})
    common = ["--policy-dir", str(tmp_path)]
    assert read_config(["--models", str(file), *common], {}).fronted() == read_models(file)
    model = ["--model", str(tmp_path / "m")]
    for given, problem in (
        ([], "--model: give the folder of the served model, or several models by --models"),
        (model, "--worker: give the address of at least one worker"),
        (["--models", str(file), *model], "--models: names models, folders and workers; leave --model"),
        (["--models", str(file), "--worker", "a:1"], "--models: names models, folders and workers"),
        (["--models", str(tmp_path / "none")], "--models: .*none: cannot be read"),
    ):
        with pytest.raises(ConfigurationError, match=problem):
            read_config([*given, *common], {})


def test_a_process_that_is_started_again_refuses_a_file_that_was_changed_since(tmp_path: Path) -> None:
    file, address = write(tmp_path, {"models": [GOOD]}), f"127.0.0.1:{free_port()}"
    (tmp_path / "policies").mkdir()
    given = ["--models", str(file), "--policy-dir", str(tmp_path / "policies"), "--listen", address, "--detect", "off"]
    command, log = [sys.executable, "-m", "sparsity_router", *given, "--processes", "2"], tmp_path / "log"

    def holds(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert router.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def live() -> list[psutil.Process]:
        return [each for each in psutil.Process(router.pid).children() if each.status() != psutil.STATUS_ZOMBIE]

    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as router:
        try:
            holds(lambda: log.read_text().count(f"router on {address}") == 2)
            file.write_text(file.read_text().replace('"a"', '"b"'))
            first, second = live()
            first.kill()
            holds(lambda: f"--models: {file}: was changed since this router was started" in log.read_text())
            assert second in live()
        finally:
            router.terminate()


def test_bands_stand_in_the_place_of_a_band_set(tmp_path: Path) -> None:
    file = write(tmp_path, {"models": [GOOD | {"bands": {"low": BANDS}}]})
    given = ["--models", str(file), "--policy-dir", str(tmp_path), "--band-set"]
    found = read_config([*given, "small-context"], {}).model_bands()
    assert found.taken == bands_of("small-context")
    assert found.own == {"a": {Risk.LOW: parse_bands(Risk.LOW, BANDS)}}
    with pytest.raises(
        ConfigurationError, match="--models: bands stand in the place of the band set's, and --band-set"
    ):
        read_config([*given, "none"], {})


def test_one_model_may_have_names_of_its_own(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m")
    common = ["--policy-dir", str(tmp_path), "--model", str(model), "--worker", "127.0.0.1:1"]
    (plain,) = read_config(common).fronted()
    assert (plain.name, plain.known_as) == ("m", {"m"})
    names = ["--served-model-name", "org/a", "--served-model-name", "b"]
    (named,) = read_config([*common, *names]).fronted()
    assert (named.name, named.aliases, named.known_as) == ("org/a", ("b",), {"org/a", "a", "b", "m"})
    path = write(tmp_path, {"models": [GOOD]})
    several = ["--policy-dir", str(tmp_path), "--models", str(path), *names]
    for arguments, words in (
        (several, "leave --model, --worker and --served-model-name out"),
        ([*common, "--served-model-name", ""], "must be text of 1 to"),
        ([*common, "--served-model-name", "a", "--served-model-name", "a"], "'a' stands 2 times"),
    ):
        with pytest.raises(ConfigurationError, match="--served-model-name") as caught:
            read_config(arguments)
        assert words in str(caught.value)
