"""An option is stated once; command line, environment, file, page and chart follow it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from sparsity_policies.decisions.costs import H100, GpuSpeed
from sparsity_policies.storage.redis_url import RedisTls, read_url
from sparsity_router.__main__ import read_config as read_router
from sparsity_router.config import RouterConfig
from sparsity_router.fleet.patience import Patience
from sparsity_rpc.errors import ConfigurationError
from sparsity_rpc.tls import ClientTls
from sparsity_serving.options.declaration import Option, check_bounds, group, leaves, option, same
from sparsity_serving.options.settings import parser_of, read_settings
from sparsity_worker.__main__ import read_config as read_worker
from sparsity_worker.coalescing import Coalescing
from sparsity_worker.config import WorkerConfig
from support.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "deploy" / "helm" / "sparsity-router" / "values.schema.json"


def both_sides(source: str, text: str) -> tuple[int, ...]:
    return (int(text), int(text) - 2)


@dataclass(frozen=True)
class Lamp:
    wire: Path
    colour: str = "white"


@dataclass(frozen=True)
class Timer:
    minutes: float = 5.0
    repeats: int = 1


@dataclass(frozen=True)
class House:
    name: str = option("of the house")
    rooms: int = option("how many", 2, least=1, below=10)
    doors: tuple[str, ...] = option("each", (), name="door")
    heated: bool = option("in winter", True)
    kind: str = option("of house", "flat", choices=("flat", "villa"))
    hours: tuple[int, ...] = option("of sun by side, the south first", (6, 4), read=both_sides)
    lamp: Lamp | None = group(None, wire=Option("to it", "lamp-wire"), colour=Option("of it", "lamp-colour"))
    timer: Timer = group(Timer, minutes=Option("to run", "timer-minutes", above=0), repeats=Option("", "timer-repeats"))

    def __post_init__(self) -> None:
        check_bounds(self)


def read(*arguments: str, **environment: str) -> House:
    return read_settings(House, "HOUSE", parser_of(House, "HOUSE", "house", None), arguments, environment)


def test_command_line_counts_before_environment_before_file_before_default(tmp_path: Path) -> None:
    file = tmp_path / "house.yaml"
    file.write_text("name: filed\nrooms: 4\nheated: false\ndoor: [north, south]\ntimer-repeats: 3\n")
    found = read("--name", "said", "--config", str(file), HOUSE_ROOMS="5", HOUSE_NAME="set")
    assert found == House("said", 5, ("north", "south"), False, "flat", timer=Timer(5.0, 3))
    assert read(HOUSE_CONFIG=str(file), HOUSE_DOOR="a b") == House("filed", 4, ("a", "b"), False, timer=Timer(5.0, 3))


def test_a_reader_gives_the_whole_value_and_the_last_text_counts() -> None:
    assert read("--name", "n", "--hours", "9", "--hours", "5").hours == (5, 3)
    assert read("--name", "n", HOUSE_HOURS="8").hours == (8, 6)


def test_groups_are_put_together_and_say_what_they_lack() -> None:
    assert read("--name", "n", "--lamp-wire", "w").lamp == Lamp(Path("w"))
    assert read("--name", "n", "--timer-minutes", "2").timer == Timer(2.0, 1)
    assert read("--name", "n").lamp is None
    with pytest.raises(ConfigurationError, match=r"^--lamp-wire: must be given with --lamp-colour$"):
        read("--name", "n", "--lamp-colour", "red")


@pytest.mark.parametrize(
    ("arguments", "environment", "problem"),
    [
        ((), {}, r"--name: must be given \(of the house\), here or by --config, HOUSE_NAME"),
        (("--rooms", "x"), {}, "--rooms: must be a whole number, not 'x'"),
        (("--rooms", "1.5"), {}, "--rooms: must be a whole number"),
        (("--rooms", "10"), {}, "--rooms: must be at least 1 and less than 10, not 10"),
        (("--kind", "tent"), {}, "--kind: must be one of flat, villa, not 'tent'"),
        (("--timer-minutes", "nan"), {}, "--timer-minutes: must be more than 0, not nan"),
        ((), {"HOUSE_ROOMS": "many"}, "HOUSE_ROOMS: must be a whole number, not 'many'"),
        ((), {"HOUSE_HEATED": "warm"}, "HOUSE_HEATED: must be true or false, not 'warm'"),
        ((), {"HOUSE_CONFIG": "/nowhere"}, "--config: /nowhere: cannot be read"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_source(
    arguments: tuple[str, ...], environment: dict[str, str], problem: str
) -> None:
    name = () if problem.startswith("--name") else ("--name", "n")
    with pytest.raises(ConfigurationError, match=f"^{problem}"):
        read(*name, *arguments, **environment)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("romms: 3", "romms: no such option; did you mean rooms?"),
        ("rooms: [3]", r"rooms: must be a whole number, not \[3\]"),
        ("rooms: true", "rooms: must be a whole number, not True"),
        ("rooms:", "rooms: must be a whole number, not None"),
        ("- rooms", "must be a mapping"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_key(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "house.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=problem):
        read("--name", "n", "--config", str(file))


def test_bounds_by_tier_and_files_of_several_options_reach_the_configurations(tmp_path: Path) -> None:
    model = ("--model", str(tiny_model(tmp_path)))
    words = ("--worker", "a:1", "--worker", "b:1", "--redis-url", "redis://r", "--band-set", "none", "--request-log")
    files = ("--worker-ca", "ca", "--worker-cert", "c", "--worker-key", "k", "--gpu-bandwidth", "3")
    router = read_router((*model, *words, *files, "--next-message-seconds", "dense=9,moderate=5,aggressive=1"), {})
    assert router.workers == ("a:1", "b:1")
    assert router.band_set is None
    assert router.request_log
    assert router.patience == Patience(between=(9.0, 5.0, 1.0))
    assert router.worker_tls == ClientTls(Path("ca"), Path("c"), Path("k"))
    assert router.gpu == GpuSpeed(H100.tflops, 3.0)
    words = ("--worker-id", "w", "--tiers", "dense", "--access", "who.yaml", "--no-overlap", "--coalesce-tokens", "1")
    worker = read_worker((*model, *words), {"SPARSITY_WORKER_REASONING_OPEN": "<a>"})
    assert (worker.access, worker.overlap) == (Path("who.yaml"), False)
    assert worker.coalescing == Coalescing(tokens=1)
    assert worker.reasoning_markers == ("<a>", "</think>")


@pytest.mark.parametrize(
    ("read_config", "words", "told"),
    [
        (read_router, ("--worker-cert", "c"), "--worker-ca: must be given with the other options of workers' TLS"),
        (read_router, ("--tls-client-ca", "c"), "--tls-cert, --tls-key: must be given with --tls-client-ca"),
        (read_router, ("--first-message-seconds", "0"), "--first-message-seconds: must be seconds, more than 0"),
        (read_router, ("--band-set", "lax"), "--band-set: must be one of"),
        (read_router, ("--gpu-tflops", "0"), "--gpu-tflops: must be more than 0"),
        (read_worker, ("--coalesce-tokens", "0"), "--coalesce-tokens: must be at least 1, not 0"),
        (read_worker, ("--coalesce-seconds", "2"), "--coalesce-seconds: must be at least 0 and at most 1, not 2.0"),
        (read_worker, ("--measured-share", "2"), "--measured-share: must be at least 0 and at most 1, not 2.0"),
    ],
)
def test_what_a_program_refuses_names_the_option(
    tmp_path: Path, read_config: Callable[..., object], words: tuple[str, ...], told: str
) -> None:
    needed = {
        read_router: ("--worker", "a:1", "--redis-url", "redis://r"),
        read_worker: ("--worker-id", "w", "--tiers", "dense"),
    }
    with pytest.raises(ConfigurationError, match=f"^{told}"):
        read_config(("--model", str(tiny_model(tmp_path)), *needed[read_config], *words), {})


@dataclass(frozen=True)
class Flat:
    number: int = option("of the door")
    space: int = same(House, "rooms")
    sun: tuple[int, ...] = same(House, "hours")
    kept: Path = same(WorkerConfig, "state_folder")


def test_an_option_of_another_class_is_as_it_is_stated_there() -> None:
    of = {leaf.path[0]: leaf for settings in (House, WorkerConfig) for leaf in leaves(settings)}
    own = {leaf.path[0]: leaf for leaf in leaves(Flat)}
    for name, there in (("space", "rooms"), ("sun", "hours"), ("kept", "state_folder")):
        assert own[name].default == of[there].default
        assert own[name].said.help == of[there].said.help
        assert own[name].said.bounds() == of[there].said.bounds()
        assert own[name].said.read == of[there].said.read


@pytest.mark.parametrize("settings", [RouterConfig, WorkerConfig])
def test_every_option_says_what_it_is_and_no_two_share_a_name(settings: type) -> None:
    names = [leaf.said.name for leaf in leaves(settings)]
    assert len(names) == len(set(names)) > 20
    assert all(leaf.said.help for leaf in leaves(settings))
    # Variables that a cluster sets for a service of our name: SPARSITY_ROUTER_PORT, SPARSITY_ROUTER_SERVICE_HOST.
    assert not [name for name in names if name.startswith(("port", "service"))]


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        (RouterConfig, ("properties", "router")),
        # A pool of workers by any name.
        (WorkerConfig, ("properties", "workers", "additionalProperties")),
    ],
)
def test_the_chart_takes_every_option_and_no_other(settings: type, path: tuple[str, ...]) -> None:
    allowed = json.loads(SCHEMA.read_text())
    for name in (*path, "properties", "options"):
        allowed = allowed[name]
    assert set(allowed["properties"]) == {leaf.said.name for leaf in leaves(settings) if not leaf.said.inner}
    assert allowed["additionalProperties"] is False


@pytest.mark.parametrize(("value", "name"), [("router.policyTtl", "policy-ttl"), ("policies.bandSet", "band-set")])
def test_what_the_chart_says_beside_the_options_is_their_default(value: str, name: str) -> None:
    told = yaml.safe_load((SCHEMA.parent / "values.yaml").read_text(encoding="utf-8"))
    for word in value.split("."):
        told = told[word]
    [leaf] = [leaf for leaf in leaves(RouterConfig) if leaf.said.name == name]
    assert told == leaf.default


def test_a_store_has_its_files_and_passwords_and_shows_none(tmp_path: Path) -> None:
    words = ("--model", str(tiny_model(tmp_path)), "--worker", "a:1", "--redis-url", "rediss://r", "--redis-ca", "ca")
    environment = {"SPARSITY_REDIS_CERT": "c", "SPARSITY_REDIS_KEY": "k", "SPARSITY_REDIS_PASSWORD": "s/cret"}
    config = read_router(words, environment)
    read_back = read_url(str(config.redis_url))
    assert read_back.login.password == "s/cret"
    assert read_back.tls == RedisTls("ca", "c", "k")
    assert "cret" not in repr(config)
    with pytest.raises(ConfigurationError, match=r"^--redis-ca, --redis-cert and --redis-key: give them with"):
        read_router((*words[:4], "--policy-dir", str(tmp_path), "--redis-key", "k"), {})


def test_a_changed_default_makes_the_page_stale(tmp_path: Path) -> None:
    script = (
        "import sys, dataclasses; sys.path.insert(0, 'tools'); import options;"
        "from sparsity_router.config import RouterConfig;"
        "field = {field.name: field for field in dataclasses.fields(RouterConfig)}['queue_seconds'];"
        "field.default = float(sys.argv[1]); print(options.page() == options.PAGE.read_text())"
    )
    told = [
        subprocess.run([sys.executable, "-c", script, seconds], cwd=ROOT, capture_output=True, text=True, check=True)
        for seconds in ("10", "11")
    ]
    assert [one.stdout.strip() for one in told] == ["True", "False"]
