"""What `sparsity up` starts: one worker of every tier, or one for each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sparsity_router.embedded.child import Child
from sparsity_router.embedded.profiles import profiles_by_tier
from sparsity_router.embedded.state import Running, read_running
from sparsity_router.embedded.supervisor import Supervisor, UpConfig
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.engines import ECHO

EVERY = "dense,moderate,aggressive"
MODERATE, AGGRESSIVE = "smollm2-135m-moderate", "smollm2-135m-aggressive"


def after(arguments: list[str], option: str) -> list[str]:
    """What is given with an option."""
    return [arguments[place + 1] for place, word in enumerate(arguments) if word == option]


def started(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> tuple[Supervisor, Running]:
    """The service with processes that never started, and the note of it."""
    monkeypatch.setattr(Child, "start", lambda self: None)
    (folder / "logs").mkdir()
    supervisor = Supervisor(UpConfig(folder, "127.0.0.1:7000", metrics_port=9000, **options), lambda line: None)  # type: ignore[arg-type]
    supervisor._start_children(folder / "model", "redis://h:1/0")
    supervisor._note(folder / "model", "redis://h:1/0", 1.0)
    return supervisor, read_running(folder)


@pytest.mark.parametrize(
    ("options", "workers"),
    [
        ({}, {"worker-shared": ([EVERY], [MODERATE, AGGRESSIVE])}),
        (
            {"pools": True},
            {
                "worker-dense": (["dense"], []),
                "worker-moderate": (["moderate"], [MODERATE]),
                "worker-aggressive": (["aggressive"], [AGGRESSIVE]),
            },
        ),
        (
            {"model": Path("other")},
            {"worker-shared": ([EVERY], ["generic-moderate", "generic-aggressive"])},
        ),
        (
            {"profiles": ("dsa-aggressive",)},
            {"worker-shared": ([EVERY], [MODERATE, "dsa-aggressive"])},
        ),
        ({"engine": ECHO}, {"echo-shared": ([EVERY], [])}),
        ({"engine": ECHO, "pools": True}, {f"echo-{tier}": ([tier], []) for tier in EVERY.split(",")}),
    ],
)
def test_workers_get_their_tiers_and_the_router_all_of_them(
    options: dict[str, object], workers: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor, _ = started(tmp_path, monkeypatch, **options)
    children = list(supervisor._workers.values())
    assert {
        child.name: (after(child.arguments, "--tiers"), after(child.arguments, "--profile")) for child in children
    } == workers
    router = supervisor._router
    assert router is not None
    assert after(router.arguments, "--worker") == [child.address for child in children]
    ports = [after(child.arguments, "--metrics-listen") for child in (router, *children)]
    assert ports == [[f"127.0.0.1:{9000 + place}"] for place in range(len(children) + 1)]


def test_the_router_gets_what_is_said_and_has_its_own_defaults_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"band_set": "none", "policy_ttl": 5.0, "access": tmp_path / "who.yaml", "http": "127.0.0.1:8080"}
    told = {"--band-set": "none", "--policy-ttl": "5.0", "--access": str(tmp_path / "who.yaml")}
    told["--http-listen"] = "127.0.0.1:8080"
    for number, options in enumerate((said, {})):
        folder = tmp_path / str(number)
        folder.mkdir()
        router = started(folder, monkeypatch, **options)[0]._router
        assert router is not None
        assert {option: after(router.arguments, option) for option in told} == {
            option: [value] if options else [] for option, value in told.items()
        }


@pytest.mark.parametrize(
    ("profiles", "words"),
    [
        (("dsa",), "dsa: its tier must be moderate or aggressive, not 'dsa'"),
        (("absent.yaml",), "absent.yaml: cannot be read"),
        (("generic-moderate", MODERATE), "generic-moderate and smollm2-135m-moderate are both of the moderate tier"),
    ],
)
def test_a_profile_of_no_tier_or_of_anothers_is_refused(profiles: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        profiles_by_tier(profiles, other_model=False)


def test_a_profile_by_its_path_is_of_the_tier_that_it_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("{tier: aggressive}")
    found = profiles_by_tier((str(path),), other_model=True)
    assert found == {"moderate": "generic-moderate", "aggressive": str(path)}
    path.write_text("[]")
    with pytest.raises(ConfigurationError, match="not None"):
        profiles_by_tier((str(path),), other_model=True)


def test_the_note_has_a_worker_for_each_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").mkdir()
    _, shared = started(tmp_path / "one", monkeypatch)
    assert {tier: worker.name for tier, worker in shared.workers.items()} == dict.fromkeys(
        EVERY.split(","), "worker-shared"
    )
    assert shared.is_shared
    assert shared.shape == "Valkey, router, a worker of every tier"
    (tmp_path / "three").mkdir()
    _, pools = started(tmp_path / "three", monkeypatch, pools=True)
    assert [worker.name for worker in pools.workers.values()] == [f"worker-{tier}" for tier in EVERY.split(",")]
    assert not pools.is_shared
    assert pools.shape == "Valkey, router, 3 workers"
