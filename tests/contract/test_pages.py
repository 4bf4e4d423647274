"""README and docs name what exists: links, modules, options, commands; each page answers one question."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import click
import pytest
import typer
from options import default
from sparsity_cli.main import app
from sparsity_router.config import RouterConfig
from sparsity_serving.options.declaration import leaves
from sparsity_worker.config import TOKENS_CPU, WorkerConfig

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*PAGES, *sorted((ROOT / "docs").glob("*/**/*.md"))]
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
SOURCE = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in TRACKED if name.endswith(".py"))
# Of docker, pip, Prometheus and SGLang.
FOREIGN = {
    "--context", "--attention-backend", "--build", "--enable-feature", "--json-model-override-args", "--require-hashes",
    "--smg-grpc-mode",
}  # fmt: skip


def commands(command: click.Command, name: str) -> dict[str, click.Command]:
    """A command and everything below it, by the words that call it."""
    found = {name: command}
    for below, child in getattr(command, "commands", {}).items():
        found |= commands(child, f"{name} {below}")
    return found


COMMANDS = commands(typer.main.get_command(app), "sparsity")


def by_name(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.relative_to(ROOT).as_posix())


def anchors(page: Path) -> set[str]:
    """What a link may name of a page, as GitHub makes it of headings."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@by_name(PAGES[1:])
def test_a_page_has_one_question_as_its_title_and_readme_leads_to_it(page: Path) -> None:
    titles = re.findall(r"(?m)^# (.*)$", re.sub(r"(?s)```.*?```", "", page.read_text(encoding="utf-8")))
    assert len(titles) == 1
    assert titles[0].endswith("?")
    assert f"| {titles[0]} | [{page.stem}](docs/{page.name}) |" in README.read_text(encoding="utf-8")


@by_name(LINKING)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if link.startswith(("http://", "https://")):
            continue
        target = Path(os.path.normpath(page.parent / path)) if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def parameter(option: str) -> str:
    """How a command of the quality suite, which is not loaded here, declares an option."""
    return f"    {option.removeprefix('--').replace('-', '_')}: Annotated["


@by_name(PAGES)
def test_options_exist(page: Path) -> None:
    said = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9](?![\w-])", page.read_text(encoding="utf-8")))
    ours = {flag for command in COMMANDS.values() for each in command.params for flag in each.opts}
    ours |= {leaf.flag for settings in (RouterConfig, WorkerConfig) for leaf in leaves(settings)}
    ours |= {f"--no-{flag.removeprefix('--')}" for flag in ours} | {"--help", "--config"}
    literal = {option for option in said - ours if f'"{option}"' in SOURCE or parameter(option) in SOURCE}
    assert not said - ours - literal - FOREIGN


def stated(text: str) -> list[tuple[str, str]]:
    """Options and what a text says is their default: in a table with such a column, behind a name, or after a value."""
    found = re.findall(r"`(--[a-z-]+)` \(([\d.,]+)\)", text) + re.findall(r"`(--[a-z-]+) ([^` ]+)`, the default", text)
    for table in re.findall(r"(?m)^\| option \| default \|.*\n\|[-|]+\n((?:\|.*\n)+)", text):
        found += re.findall(r"(?m)^\| `(--[a-z-]+)` \| ?(.*?) ?\|", table)
    return found


@by_name([page for page in PAGES if page.stem != "options"])
def test_defaults_that_a_page_states_are_the_options_own(page: Path) -> None:
    own: dict[str, set[str]] = {}
    for settings in (RouterConfig, WorkerConfig):
        for leaf in leaves(settings):
            own.setdefault(leaf.flag, set()).add(default(leaf).strip("`"))
    said = stated(page.read_text(encoding="utf-8"))
    assert not [(flag, value) for flag, value in said if value.strip("`") not in own[flag]]


def test_statements_of_defaults_are_found() -> None:
    text = "`--a-b` (30) and `--c d`, the default\n\n| option | default | what |\n|---|---|---|\n| `--e` | 0.5 | x |\n"
    assert stated(f"{text}| `--f` | | y |\n") == [("--a-b", "30"), ("--c", "d"), ("--e", "0.5"), ("--f", "")]
    assert len(stated((ROOT / "docs" / "operations.md").read_text(encoding="utf-8"))) > 5


def test_up_hands_the_router_its_options_in_its_words_and_takes_neither_certificates_nor_limits() -> None:
    """As operations.md says."""
    options = [each for each in COMMANDS["sparsity up"].params if isinstance(each, typer.core.TyperOption)]
    taken = {each.opts[0].removeprefix("--"): each for each in options}
    assert "access" in taken
    router = {leaf.said.name: leaf for leaf in leaves(RouterConfig)}
    assert not [name for name in taken if name.startswith("tls-") or name in ("tenant-limits", "worker-ca")]
    assert {name for name in router if name.startswith("tls-")}
    assert "tenant-limits" in router
    for name in ("access", "band-set", "policy-ttl", "redis-ca", "redis-cert", "redis-key"):
        assert str(taken[name].help).lower() == f"{router[name].said.help}.".lower()
    assert taken["policy-ttl"].default == router["policy-ttl"].default


def test_the_page_of_options_has_those_of_up_with_the_defaults_that_only_it_has() -> None:
    _, _, table = (ROOT / "docs" / "options.md").read_text(encoding="utf-8").partition("\n## `sparsity up`\n")
    said = dict(re.findall(r"(?m)^\| `(--[a-z-]+)`[^|]* \| ?`?(.*?)`? ?\|", table))
    options = COMMANDS["sparsity up"].params
    assert list(said) == [each.opts[0] for each in options]
    own = {each.opts[0]: str(each.default) for each in options}
    assert {flag: said[flag] for flag in ("--band-set", "--http", "--metrics-port")} == {
        flag: own[flag] for flag in ("--band-set", "--http", "--metrics-port")
    }


def test_the_cache_of_a_worker_on_a_cpu_is_as_the_page_says() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert re.findall(r"`--max-total-tokens` \(([\d,]+) on the CPU\)", page) == [f"{TOKENS_CPU:,}"]


@by_name(PAGES)
def test_commands_exist(page: Path) -> None:
    for words in re.findall(
        r"(?m)(?:^\$? ?|`|\.venv/bin/)(sparsity(?: [a-z][a-z-]+)+)", page.read_text(encoding="utf-8")
    ):
        parts = words.split()
        # A group's next word is a command of its own, a command's an argument.
        for count in range(1, len(parts)):
            if not hasattr(COMMANDS[" ".join(parts[:count])], "commands"):
                break
            assert " ".join(parts[: count + 1]) in COMMANDS, words


@by_name(PAGES)
def test_modules_exist(page: Path) -> None:
    for name in re.findall(r"`((?:sparsity\w*|sparse_kernels)(?:\.\w+)+)`", page.read_text(encoding="utf-8")):
        path = name.replace(".", "/")
        above, _, last = path.rpartition("/")
        found = [*ROOT.glob(f"*/{path}"), *ROOT.glob(f"*/{path}.py")]
        within = [module for module in ROOT.glob(f"*/{above}.py") if re.search(rf"\b{last}\b", module.read_text())]
        # Loggers, attributes of spans, metrics.
        assert found or within or f'"{name}"' in SOURCE, name


def test_extras_that_are_told_of_exist() -> None:
    told = "\n".join([SOURCE, *(page.read_text(encoding="utf-8") for page in PAGES)])
    projects = [tomllib.loads(path.read_text(encoding="utf-8"))["project"] for path in ROOT.glob("*/pyproject.toml")]
    extras = {project["name"]: set(project.get("optional-dependencies", ())) for project in projects}
    found = re.findall(r"(sparsity-[a-z]+)\[([a-z,]+)\]", told)
    assert found
    assert not [(name, extra) for name, several in found for extra in several.split(",") if extra not in extras[name]]


def test_the_page_for_developers_names_what_make_does() -> None:
    (targets,) = re.findall(r"(?m)^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"))
    named = re.findall(r"(?m)^make ([a-z0-9-]+)", (ROOT / "docs" / "developing.md").read_text(encoding="utf-8"))
    assert sorted(named) == sorted(targets.split())


def test_what_make_runs_is_there() -> None:
    # A path that is gone ends a run of minutes, or worse, leaves aside nothing where it should.
    recipes = subprocess.run(
        ["make", "--dry-run", "test", "check", "chaos", "test-gpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    places = set(re.findall(r"\btests/[\w/.]+", recipes))
    assert len(places) > 5
    assert [place for place in sorted(places) if not (ROOT / place).exists()] == []
