"""The declared dependencies are the imported ones, and the package works without its extras."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import metadata, packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "wardrop"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    name: PROJECT["optional-dependencies"][name]
    for name in ("dynamo", "serve", "kubernetes", "frames", "grpc", "plot", "ray")
}

# Declared without an import in the package, with the reason.
NOT_IMPORTED = {"uvloop": "Dynamo's frontend imports it, and ai-dynamo does not declare it"}

# Imported without a declaration, with the reason.
NOT_DECLARED = {"tokenizers": "`wardrop demo` trains its tokeniser in Dynamo's interpreter"}

# Refuses to import the modules that argv[1] names, then runs the rest of argv as code.
WITHOUT = """
import sys
refused = set(sys.argv[1].split(","))
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
code = sys.argv[2]
sys.argv[1:] = sys.argv[3:]
exec(code)
"""


def normal(name: str) -> str:
    """Name of a distribution as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    """Distributions of a list of requirements."""
    return {normal(re.split(r"[^A-Za-z0-9._-]", each, maxsplit=1)[0]) for each in requirements}


@cache
def imported_modules() -> frozenset[str]:
    """Top-level modules that the package imports and that neither Python nor the package brings."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module)
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func).endswith("import_module")
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(str(node.args[0].value))
    tops = {name.partition(".")[0] for name in found}
    return frozenset(tops - set(sys.stdlib_module_names) - {"wardrop"})


def owners_of(module: str) -> set[str]:
    """Distributions that bring a module. A module that is not installed counts as its own."""
    return {normal(owner) for owner in _owners().get(module, [module])}


@cache
def _owners() -> dict[str, list[str]]:
    return dict(packages_distributions())


def modules_of(requirements: list[str]) -> set[str]:
    """Imported modules that belong to the named distributions."""
    wanted = names(requirements)
    return {module for module in imported_modules() if wanted & owners_of(module)}


def run_without(modules: set[str], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, ",".join(sorted(modules)), code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_every_imported_package_is_declared() -> None:
    declared = names(
        [*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)]
    )
    undeclared = {
        module
        for module in imported_modules() - set(NOT_DECLARED)
        if not declared & owners_of(module)
    }
    assert not undeclared


@pytest.mark.parametrize("group", ["base", *EXTRAS])
def test_every_declared_package_is_imported(group: str) -> None:
    requirements = PROJECT["dependencies"] if group == "base" else EXTRAS[group]
    imported = {owner for module in imported_modules() for owner in owners_of(module)}
    assert names(requirements) - imported - set(NOT_IMPORTED) == set()


def test_extras_are_the_documented_ones() -> None:
    # `frontend` is a binary, which nothing imports.
    assert set(PROJECT["optional-dependencies"]) == {*EXTRAS, "frontend", "dev", "docs"}


def test_the_router_needs_no_other_package() -> None:
    code = (
        "import wardrop\n"
        "router = wardrop.Router(block_size=4, policy='toll')\n"
        "router.add_worker(7)\n"
        "print(router.route([1, 2, 3, 4, 5]).worker[0])\n"
    )
    ran = run_without(set(imported_modules()), code)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "7\n"


def test_every_command_prints_its_help_without_the_extras() -> None:
    extras = modules_of([each for extra in EXTRAS.values() for each in extra])
    assert {"aiohttp", "dynamo", "matplotlib", "pandas"} <= extras
    code = "from wardrop.cli import main; main()"
    listed = run_without(extras, code, "--help")
    assert listed.returncode == 0, listed.stderr
    commands = re.findall(r"^[│ ]+([a-z][a-z-]+) {2,}\S", listed.stdout, re.MULTILINE)
    assert {"dynamo", "demo", "replay", "games"} <= set(commands), listed.stdout
    for command in commands:
        ran = run_without(extras, code, command, "--help")
        assert ran.returncode == 0, f"wardrop {command} --help: {ran.stderr}"
        assert "Usage" in ran.stdout


def test_a_picker_without_a_cluster_needs_no_extra(tmp_path: Path) -> None:
    file = tmp_path / "picker.yaml"
    file.write_text("models: [{name: m}]\nworkers: [{url: 'http://127.0.0.1:1'}]\n")
    extras = modules_of([each for extra in EXTRAS.values() for each in extra])
    code = (
        "from pathlib import Path\n"
        "from wardrop.picker import PickerServer, read_file\n"
        "path = Path(sys.argv[1])\n"
        "server = PickerServer(path, read_file(path))\n"
        "server.follow_selectors()\n"
        "server.follow_cluster()\n"
    )
    ran = run_without(extras, code, str(file))
    assert ran.returncode == 0, ran.stderr


def test_the_wheel_has_the_version_of_the_workspace() -> None:
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]
    assert metadata("wardrop")["Version"] == workspace["package"]["version"]
