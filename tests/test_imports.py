"""Imports between packages run one way, and a package's `__init__` has what it promises."""

import ast
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1] / "jvdm"
# A package imports from those of lower levels, and from itself.
LEVELS = {
    "core": 0,
    "diffusion": 1,
    "networks": 1,
    "model": 2,
    "data": 3,
    "config": 4,
    "runs": 5,
    "evaluation": 6,
    "reporting": 7,
    "training": 8,
    "importers": 9,
    "api": 10,
    "cli": 11,
}
# The modules that the library was asked for by name.
SHORT = {
    "schedules": "jvdm.diffusion.schedules",
    "losses": "jvdm.diffusion.losses",
    "unet": "jvdm.networks.unet",
    "dequantization": "jvdm.diffusion.dequantization",
}
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.name == "api.py")


def modules_in(name):
    """Whether a dotted name is a module of the package."""
    path = ROOT.parent / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imported(path):
    """The modules of jvdm that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "jvdm")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jvdm":
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if modules_in(inside) else node.module


def package_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_package_has_a_level():
    assert {package_of(path) for path in FILES} == set(LEVELS)
    at_the_root = {path.stem for path in ROOT.glob("*.py")}
    assert at_the_root == {"__init__", "api", *SHORT}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_import_points_upward(path):
    package = package_of(path)
    for name in imported(path):
        parts = name.split(".")
        if len(parts) == 1:
            continue  # jvdm itself, for its version
        assert parts[1] in LEVELS, f"{name}: import it where it is defined"
        other = parts[1]
        assert other == package or LEVELS[other] < LEVELS[package], f"{package} imports {name}"


def test_modules_do_not_import_each_other_in_a_circle():
    graph = {}
    for path in FILES:
        name = "jvdm." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        name = name.removesuffix(".__init__")
        graph[name] = {other for other in imported(path) if other not in (name, "jvdm")}
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, " -> ".join([*open_[open_.index(name) :], name])
        if name in done or name not in graph:
            return
        open_.append(name)
        # A package imports its modules, which is no circle as long as they do not import it.
        for other in sorted(graph[name]):
            visit(other)
        open_.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)


@pytest.mark.parametrize("package", [name for name in LEVELS if name != "api"])
def test_a_package_says_what_is_in_it(package):
    module = importlib.import_module(f"jvdm.{package}")
    assert (module.__doc__ and 2 <= len(module.__doc__.strip().splitlines()) <= 4) or package in (
        "training",
        "cli",
    )
    for name in getattr(module, "__all__", ()):
        assert hasattr(module, name), name


def test_registries_are_complete_where_their_package_is_imported():
    from jvdm.diffusion import SCHEDULES
    from jvdm.networks import NETWORKS

    assert {"fixed_linear", "polynomial", "linear_beta"} <= set(SCHEDULES.names())
    assert NETWORKS.names() == ["ddpm_unet", "mlp", "vdm_unet"]


@pytest.mark.parametrize(("short", "module"), SHORT.items())
def test_modules_by_their_short_names(short, module):
    ours, theirs = importlib.import_module(f"jvdm.{short}"), importlib.import_module(module)
    public = [name for name in vars(theirs) if not name.startswith("_")]
    assert public
    for name in public:
        assert getattr(ours, name) is getattr(theirs, name), name
