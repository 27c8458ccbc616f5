"""Which module may import which. Change these rules first, before you add a file or a dependency."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.timeouts import TIMEOUT_S

ROOT = Path(__file__).parent.parent

# Each part of the two packages and what it may import of ours. `protos` is the generated code.
MAY_IMPORT: dict[str, set[str]] = {
    "tidegate": set(),
    "tidegate.v1": {"tidegate.v1"},
    "tidegate.core": {"tidegate.core"},
    "tidegate.store": {"tidegate.store", "tidegate.core"},
    "tidegate.rpc": {"tidegate.rpc", "tidegate.core", "tidegate.v1"},
    "tidegate.runtime": {"tidegate.runtime", "tidegate.rpc", "tidegate.store", "tidegate.core", "tidegate.v1"},
    "tidegate.client": {
        "tidegate.client",
        "tidegate.rpc.names",
        "tidegate.rpc.wire",
        "tidegate.core.spec",
        "tidegate.core.input_layout",
        "tidegate.v1",
    },
    "tidegate.blocking": {"tidegate.client", "tidegate.core.spec"},
    "tidegate.bench": {"tidegate.bench", "tidegate.client", "tidegate.core.spec", "tidegate.rpc.names", "tidegate.v1"},
    "tidegate.cli": {
        "tidegate.cli",
        "tidegate.client",
        "tidegate.runtime",
        "tidegate.core.spec",
        "tidegate.core.errors",
    },
    "tidegate.conformance": {"tidegate.conformance", "tidegate.v1"},
    "tidegate.cli.conformance": {"tidegate.cli", "tidegate.conformance"},
    "tidegate.cli.bench": {"tidegate.cli", "tidegate.bench", "tidegate.client", "tidegate.core.spec"},
    "tidegate.cli.backup": {"tidegate.cli", "tidegate.runtime", "tidegate.store", "tidegate.core.errors"},
    "tidegate.cli.inspect_graph": {"tidegate.cli", "tidegate.core"},
    "tidegate.cli.graph_trial": {"tidegate.core"},
    "tidegate.cli.model_toml": {"tidegate.core.guess"},
    "tidegate.cli.errors": set(),
    "tidegate.cli.sensor_table": {
        "tidegate.core.spec",
        "tidegate.cli.times",
        "tidegate.cli.local_times",
        "tidegate.cli.file_kind",
    },
    "tidegate.cli.forecast_scores": {"tidegate.core.spec"},
    "tidegate.cli.plot": {"tidegate.cli.forecast_scores"},
    "tidegate.__main__": {"tidegate.cli"},
}

# The rooms of training, the lowest first. Each may import itself and what stands in its line.
_LOWEST = {"tidegate.training.errors", "tidegate.training.settings", "tidegate.training.outputs"}
_JUDGING = {"tidegate.training.judging", "tidegate.training.data", *_LOWEST}
_LEARNING = {"tidegate.training.learning", "tidegate.training.network", *_JUDGING}
_PIPELINE = {"tidegate.training.pipeline", "tidegate.training.publishing", *_LEARNING}
MAY_IMPORT |= {
    "tidegate.training": {"tidegate.training.notebook", "tidegate.training.publishing"},
    "tidegate.training.errors": set(),
    "tidegate.training.settings": set(),
    "tidegate.training.outputs": set(),
    "tidegate.training.data": {"tidegate.training.data", *_LOWEST},
    "tidegate.training.network": {"tidegate.training.network", "tidegate.training.data", *_LOWEST},
    "tidegate.training.judging": _JUDGING,
    "tidegate.training.learning": _LEARNING,
    "tidegate.training.publishing": {"tidegate.training.publishing", *_LEARNING},
    "tidegate.training.pipeline": _PIPELINE,
    "tidegate.training.published": _PIPELINE,
    "tidegate.training.backtest": _PIPELINE,
    "tidegate.training.notebook": _PIPELINE,
    "tidegate.training.search": {"tidegate.training.search", *_PIPELINE},
    "tidegate.training.cli": {
        "tidegate.training.cli",
        "tidegate.training.search",
        "tidegate.training.backtest",
        "tidegate.training.published",
        *_PIPELINE,
    },
}

# The core decides, and does nothing else: these act, wait, or look at the world.
NOT_IN_THE_CORE = {
    *("asyncio", "concurrent", "multiprocessing", "threading", "socket", "selectors", "signal", "subprocess"),
    *("time", "datetime", "random", "secrets", "uuid", "os", "io", "pathlib", "shutil", "tempfile", "sqlite3"),
    *("logging", "grpc", "google", "prometheus_client", "redis", "uvloop", "typer", "rich"),
}
# onnxruntime reads its telemetry switch from the environment before it is loaded.
MAY_ALL_THE_SAME = {("tidegate.core.model", "os")}

ONLY_HERE = {
    "google": {"tidegate.rpc", "tidegate.client.errors", "tidegate.conformance"},  # only the wire modules use protobuf
    "grpc_status": {"tidegate.rpc", "tidegate.conformance"},
    "prometheus_client": {"tidegate.runtime", "tidegate.bench.scrape"},  # a bench reads the metrics of a server
    "onnxruntime": {"tidegate.core"},
    "typer": {"tidegate.cli"},
    "sqlite3": {"tidegate.store"},
    "redis": {"tidegate.store.redis", "tidegate.store.redis_client"},
    "matplotlib": {"tidegate.cli.plot", "tidegate.bench.plot"},
    "opentelemetry": {"tidegate.runtime.open_telemetry"},
}

# The same for training; the rooms that are not named for torch work on arrays and files.
TRAINING_ONLY_HERE = {
    "torch": {
        "tidegate.training.network",
        "tidegate.training.learning",
        "tidegate.training.publishing",
        "tidegate.training.cli.app",
        "tidegate.training.notebook",
    },
    "onnx": {"tidegate.training.publishing", "tidegate.training.pipeline"},
    "onnxruntime": {"tidegate.training.judging.graph"},
    "pyarrow": {"tidegate.training.data"},
    "optuna": {"tidegate.training.search"},
    "matplotlib": {"tidegate.training.search"},
    "typer": {"tidegate.training.cli"},
    "rich": {"tidegate.training.cli", "tidegate.training.search"},
}

LONGEST_FILE = 450
LONGEST_FUNCTION = 60

NEVER_IN_SERVING = {"torch", "onnx", "onnxscript", "pandas", "pyarrow", "tidegate.training"}


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file. The tests that need it share it, and nothing is parsed where none of them runs."""
    return ast.parse(path.read_text("utf-8"))


def modules(package: str) -> Iterator[tuple[str, ast.Module]]:
    """Every module of `serving` or `training` with its syntax tree."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = ("tidegate", *path.relative_to(ROOT).with_suffix("").parts[package == "serving" :])
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), tree_of(path)


@cache
def imports(module: str, tree: ast.Module) -> tuple[str, ...]:
    """The full names of all imports of a module, anywhere in the file."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; full names are what these rules can read"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                path = ROOT / "src" / whole.replace(".", "/")
                is_module = path.with_suffix(".py").exists() or (path / "__init__.py").exists()
                names.append(whole if is_module else node.module)
    return tuple(names)


def within(module: str, parts: set[str]) -> bool:
    """Whether a module is one of these or is inside one."""
    return any(module == part or module.startswith(f"{part}.") for part in parts)


def part_of(module: str) -> str:
    """The entry of `MAY_IMPORT` that speaks of a module: the longest that fits."""
    fitting = [part for part in MAY_IMPORT if within(module, {part}) and ("." in part or part == module)]
    assert fitting, f"{module} has no rule; say in MAY_IMPORT what it may import"
    return max(fitting, key=len)


OLD_NAMES = {"serving", "training", "protos"}


def test_a_module_imports_only_what_its_part_may() -> None:
    """The arrows of the design.

    Serving: cli to runtime to rpc to core, runtime to store to core, client to the wire. Training: cli to search to
    pipeline to publishing to learning to network and judging to data.
    """
    wrong = [
        f"{module} imports {name}"
        for package in ("serving", "training")
        for module, tree in modules(package)
        for name in imports(module, tree)
        if within(name, {"tidegate"}) and not within(name, MAY_IMPORT[part_of(module)])
    ]
    assert not wrong, "\n".join(wrong)


def test_serving_imports_nothing_of_training() -> None:
    """Serving imports neither training nor its libraries."""
    assert not [
        f"{module} imports {name}"
        for module, tree in modules("serving")
        for name in imports(module, tree)
        if within(name, NEVER_IN_SERVING)
    ]


def test_everything_is_imported_under_tidegate() -> None:
    """The folders of the repository are no names to import: a user may have folders of these names."""
    listed = subprocess.check_output(["git", "ls-files", "*.py"], cwd=ROOT, text=True).split()
    paths = [ROOT / name for name in listed if not (ROOT / name).is_symlink()]
    assert len(paths) > 500
    assert not [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if within(name, OLD_NAMES)
    ]


def test_training_imports_nothing_of_serving() -> None:
    """They share the model file and nothing else."""
    assert not [
        f"{module} imports {name}"
        for module, tree in modules("training")
        for name in imports(module, tree)
        if within(name, {"tidegate"}) and not within(name, {"tidegate.training"})
    ]


def test_the_core_only_decides() -> None:
    """No event loop, no clock, no disk, no network, no log."""
    core = [(module, tree) for module, tree in modules("serving") if within(module, {"tidegate.core"})]
    assert core
    assert not [
        f"{module} imports {name}"
        for module, tree in core
        for name in imports(module, tree)
        if within(name, NOT_IN_THE_CORE) and (module, name) not in MAY_ALL_THE_SAME
    ]
    assert not [
        f"{module}, line {node.lineno}: waits"
        for module, tree in core
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncFunctionDef | ast.Await)
    ]


@pytest.mark.parametrize(
    ("package", "library", "rooms"),
    [("serving", library, rooms) for library, rooms in ONLY_HERE.items()]
    + [("training", library, rooms) for library, rooms in TRAINING_ONLY_HERE.items()],
)
def test_a_library_stays_where_it_belongs(package: str, library: str, rooms: set[str]) -> None:
    """So that it can be exchanged, and read about, in one place."""
    users = {
        module for module, tree in modules(package) if any(within(name, {library}) for name in imports(module, tree))
    }
    assert users
    assert not {user for user in users if not within(user, rooms)}


def test_only_the_server_and_the_command_line_see_the_settings() -> None:
    """All other modules take plain values."""
    users = {module for module, tree in modules("serving") if "tidegate.runtime.config" in set(imports(module, tree))}
    assert users <= {
        "tidegate.runtime.make_catalog",
        "tidegate.runtime.server",
        *(f"tidegate.cli.{each}" for each in ("app", "backup", "settings_file", "worker")),
    }


@pytest.mark.parametrize("package", ["serving", "training"])
def test_there_are_no_circles(package: str) -> None:
    """Modules can be put in an order in which each imports only what comes before."""
    trees = dict(modules(package))
    left = {
        module: {name for name in imports(module, tree) if name in trees and name != module}
        for module, tree in trees.items()
    }
    while left:
        free = {module for module, needs in left.items() if not needs & left.keys()}
        assert free, f"a circle among {', '.join(sorted(left))}"
        left = {module: needs for module, needs in left.items() if module not in free}


def test_files_stay_short() -> None:
    """A file has at most 450 lines."""
    assert not [
        f"{path.relative_to(ROOT)}: {lines} lines, at most {LONGEST_FILE} are allowed; split it"
        for package in ("serving", "training")
        for path in sorted((ROOT / package).rglob("*.py"))
        if (lines := path.read_text("utf-8").count("\n")) > LONGEST_FILE
    ]


def test_functions_stay_short() -> None:
    """A function has at most 60 lines, its docstring included."""
    assert not [
        f"{module}.{node.name}: {lines} lines, at most {LONGEST_FUNCTION} are allowed; split it"
        for package in ("serving", "training")
        for module, tree in modules(package)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    ]


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("tidegate", ["torch", "onnx", "pandas", "pyarrow", "tidegate.training", "onnxruntime", "grpc", "numpy"]),
        (
            "tidegate.client",
            ["torch", "onnx", "pandas", "pyarrow", "tidegate.training", "onnxruntime", "prometheus_client"],
        ),
        (
            "tidegate.runtime.server",
            ["torch", "onnx", "pandas", "pyarrow", "tidegate.training", "matplotlib", "redis", "opentelemetry"],
        ),
        ("tidegate.runtime.supervisor", ["torch", "onnxruntime", "grpc", "google", "numpy", "uvloop", "pydantic"]),
        # Its first line handles the signals. While modules load before that, a container loses SIGTERM.
        ("tidegate.cli", ["asyncio", "typer", "rich", "numpy"]),
        (
            "tidegate.cli.app",
            ["torch", "onnx", "pandas", "pyarrow", "tidegate.training", "onnxruntime", "grpc", "numpy"],
        ),
        (
            "tidegate.training.cli",
            ["torch", "onnx", "pandas", "pyarrow", "onnxruntime", "optuna", "matplotlib", "tidegate.core"],
        ),
        ("tidegate.training.judging.evaluate", ["torch", "onnx", "optuna", "tidegate.core"]),
    ],
)
def test_an_import_loads_only_what_it_needs(module: str, unwanted: list[str]) -> None:
    """No training library; and for a client or the help text, no server library."""
    code = f"import sys, {module}; print(*(name for name in {unwanted!r} if name in sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=TIMEOUT_S
    )
    assert ended.stdout.split() == []
