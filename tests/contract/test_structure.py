"""Packages and sub-packages, and the arrows between them, are those of docs/architecture.md; all of them stay small."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support.page import PAGE, ROOT, rows, words
from support.slow import SLOW

MOST_MODULES, MOST_LINES, MOST_TERMS = 14, 300, 40

PACKAGES = {package: ROOT / folder / package for folder, package in
            ((row[0].strip("`"), row[1].strip("`")) for row in rows("## Packages"))}  # fmt: skip
ARROWS = {row[1].strip("`"): words(row[3]) for row in rows("## Packages")}
ROUTER = "sparsity_router"
SUB_PACKAGES = {ROUTER: {row[0].strip("`"): words(row[2]) for row in rows(f"### Sub-packages of `{ROUTER}`")}}
for cell, _, to in rows("### Sub-packages of the other packages"):
    owner, _, name = cell.strip("`").partition(".")
    SUB_PACKAGES.setdefault(owner, {})[name] = words(to)


def modules(folder: Path) -> Iterator[Path]:
    """Everything that was written by hand."""
    return (path for path in folder.rglob("*.py") if "_pb2" not in path.name)


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """The syntax of a module."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imported(path: Path) -> tuple[str, ...]:
    """Full names of what a module imports, wherever in it; of `from a import b` that is `a.b`."""
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports of ours are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(package: str, of: Callable[[str], str]) -> dict[str, set[str]]:
    """What `of` makes of the importing and of the imported modules of a package."""
    found: dict[str, set[str]] = {}
    folder = PACKAGES[package]
    for path in modules(folder):
        own = of(".".join(path.relative_to(folder.parent).with_suffix("").parts))
        found.setdefault(own, set()).update({of(name) for name in imported(path)} - {own})
    return found


def sub_package(package: str, name: str) -> str:
    """The sub-package of a module; empty above those, or outside of the package."""
    parts = name.split(".")
    inside = parts[0] == package and len(parts) > 1 and (PACKAGES[package] / parts[1]).is_dir()
    return parts[1] if inside else ""


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_what_the_page_says(package: str) -> None:
    assert arrows(package, lambda name: name.split(".")[0])[package] & PACKAGES.keys() == ARROWS[package]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_page_names_every_sub_package(package: str) -> None:
    assert {
        path.name for path in PACKAGES[package].iterdir() if any(found.stem != "__init__" for found in modules(path))
    } <= SUB_PACKAGES.get(package, {}).keys()


@pytest.mark.parametrize("package", SUB_PACKAGES)
def test_sub_packages_import_what_the_page_says(package: str) -> None:
    found = arrows(package, lambda name: sub_package(package, name))
    assert {name: to - {""} for name, to in found.items() if name} == SUB_PACKAGES[package]


def test_no_sub_package_of_the_router_imports_what_stands_above_them() -> None:
    stems = {path.stem for path in PACKAGES[ROUTER].glob("*.py")} - {"__init__"}
    (told,) = re.findall(r"(?m)^(.+) stand above the sub-packages", PAGE)
    assert words(told) == stems
    above = {f"{ROUTER}.{stem}" for stem in stems}
    for path in modules(PACKAGES[ROUTER]):
        if path.parent != PACKAGES[ROUTER]:
            assert not above & {".".join(name.split(".")[:2]) for name in imported(path)}, path


def beside(folder: Path, name: str) -> str:
    """Which child of `folder` a module lies in; empty outside of it, and for what the folder's own face hands on."""
    above, parts = ".".join(folder.relative_to(home(folder)).parts), name.split(".")
    depth = above.count(".") + 1
    if len(parts) <= depth or ".".join(parts[:depth]) != above:
        return ""
    child = folder / parts[depth]
    return parts[depth] if child.is_dir() or child.with_suffix(".py").exists() else ""


def home(folder: Path) -> Path:
    """Where the package that `folder` belongs to lies."""
    return next(package.parent for package in PACKAGES.values() if folder == package or package in folder.parents)


def folders() -> list[Path]:
    """Every folder with modules."""
    return sorted({path.parent for package in PACKAGES.values() for path in modules(package)})


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_no_arrows_run_in_a_circle(folder: Path) -> None:
    graph: dict[str, set[str]] = {}
    for path in modules(folder):
        own = path.relative_to(folder).parts[0].removesuffix(".py")
        if own != "__init__":
            graph.setdefault(own, set()).update({beside(folder, name) for name in imported(path)} - {own, ""})
    TopologicalSorter(graph).prepare()


def test_no_arrows_of_packages_run_in_a_circle() -> None:
    TopologicalSorter(ARROWS).prepare()


@pytest.mark.parametrize(
    "package",
    [
        package
        for package in PACKAGES
        if package.startswith("sparsity") and not package.endswith(("worker", "quality", "bench"))
    ],
)
def test_the_router_side_never_loads_torch_or_sglang(package: str) -> None:
    found = arrows(package, lambda name: name.split(".")[0])[package]
    assert not found & {"torch", "sglang", "transformers"}


def test_folders_hold_what_a_reader_can_take_in() -> None:
    counts: dict[str, int] = {}
    for package in PACKAGES.values():
        for path in modules(package):
            if path.name != "__init__.py":
                folder = path.parent.relative_to(ROOT).as_posix()
                counts[folder] = counts.get(folder, 0) + 1
    assert not {folder for folder, count in counts.items() if count > MOST_MODULES}


def test_folders_of_tests_and_tools_are_as_small() -> None:
    beside = [ROOT / name for name in ("tests", "tools", "deploy")]
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for folder in beside for path in modules(folder))
    assert {"tests/support", "tools", "deploy/tools"} <= counts.keys()
    assert not {folder for folder, count in counts.items() if count > MOST_MODULES}


def test_no_two_functions_of_one_name_compute_on_the_cpu_and_on_the_gpu() -> None:
    """An operation has one name; what tells its implementations apart is in the name, `..._cpu`."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    named = [
        {
            node.name
            for path in modules(PACKAGES["sparse_kernels"] / name)
            for node in nodes(path)
            if isinstance(node, kinds) and not node.name.startswith("__")
        }
        for name in ("cpu", "gpu", "reference")
    ]
    cpu, gpu, reference = named
    assert len(cpu) > 10 < len(gpu)
    assert not (cpu & gpu) | (cpu | gpu) & reference


def test_no_function_takes() -> None:
    """What is taken is adopted, redeemed, reserved, unpacked or added."""
    found = (path for package in PACKAGES.values() for path in modules(package))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = {node.name for path in found for node in nodes(path) if isinstance(node, kinds)}
    assert len(names) > 1000
    assert "take" not in names


def test_what_is_slow_is_there() -> None:
    assert not [place for place in SLOW if not (ROOT / place).exists()]


def test_modules_are_short() -> None:
    found = (path for package in PACKAGES.values() for path in modules(package))
    assert not [path for path in found if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES]


def test_the_glossary_links_modules_that_exist() -> None:
    page = ROOT / "docs" / "glossary.md"
    found = re.findall(r"(?m)^\| ([^|]+) \| [^|]+ \| \[(\w+)\]\(([^)]+)\) \|$", page.read_text(encoding="utf-8"))
    terms = [term for term, _, _ in found]
    assert terms == sorted(set(terms))
    assert 0 < len(terms) <= MOST_TERMS
    assert not [term for term, name, path in found if name != Path(path).stem or not (page.parent / path).is_file()]
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(rows) == len(terms) + 1, "every row is a term, a meaning and a link"
