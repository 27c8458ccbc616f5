"""The protocol: its generated code is up to date, every element has a comment, and released parts do not change."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from tests.timeouts import TIMEOUT_S
from tests.tools import find_tool, protoc_python

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path.relative_to(ROOT) for path in (ROOT / "protos" / "tidegate").rglob("*.proto"))
# Names and numbers of a protocol that is not ours: no code is generated from it, only a descriptor.
KSERVE = "inference/inference.proto"
KSERVE_DESCRIPTOR = ROOT / "serving" / "rpc" / "kserve" / "inference.binpb"
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


def compile_protos(*options: str, sources: Sequence[str] = ()) -> None:
    """Runs the compiler as `make protos` does; on our own protos unless others are named."""
    sources = sources or [str(source.relative_to("protos")) for source in SOURCES]
    command = [protoc_python(), "-m", "grpc_tools.protoc", "-Iprotos", *options, *sources]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, timeout=TIMEOUT_S)


def test_there_are_protos() -> None:
    """The tests below check at least one thing."""
    assert Path("protos/tidegate/v1/tidegate.proto") in SOURCES


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the compiler for the protos as they are now."""
    folder = tmp_path_factory.mktemp("generated")
    compile_protos(f"--python_out={folder}", f"--pyi_out={folder}", f"--grpc_python_out={folder}")
    return folder


@pytest.mark.parametrize("source", SOURCES, ids=str)
@pytest.mark.parametrize("suffix", GENERATED)
def test_the_generated_code_is_fresh(fresh: Path, source: Path, suffix: str) -> None:
    """The committed code is the output of the compiler, byte by byte."""
    name = source.with_name(source.stem + suffix)
    committed = ROOT / name
    assert committed.exists(), f"{name} is missing: run `make protos`"
    if committed.read_bytes() != (fresh / name.relative_to("protos")).read_bytes():
        pytest.fail(f"{name} is stale: run `make protos` and commit what it writes")


def test_the_descriptor_of_the_kserve_protocol_is_fresh(tmp_path: Path) -> None:
    """It is what the server reads."""
    compile_protos(f"--descriptor_set_out={tmp_path / 'all'}", sources=[KSERVE])
    if KSERVE_DESCRIPTOR.read_bytes() != (tmp_path / "all").read_bytes():
        pytest.fail(f"{KSERVE_DESCRIPTOR.name} is stale: run `make protos` and commit what it writes")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    """The protos with their comments."""
    path = tmp_path_factory.mktemp("descriptors") / "all"
    compile_protos(f"--descriptor_set_out={path}", "--include_source_info")
    return list(descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file)


Place = tuple[int, ...]


def elements(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, Place]]:
    """Every service, RPC, message, field, enum and enum value: its name and its path in the descriptor."""
    for number, service in enumerate(file.service):
        yield service.name, (6, number)
        for part, method in enumerate(service.method):
            yield f"{service.name}.{method.name}", (6, number, 2, part)
    for number, message in enumerate(file.message_type):
        yield from _in_message(message, (4, number), message.name)
    for number, enum in enumerate(file.enum_type):
        yield from _in_enum(enum, (5, number), enum.name)


def _in_message(message: descriptor_pb2.DescriptorProto, place: Place, name: str) -> Iterator[tuple[str, Place]]:
    yield name, place
    for number, field in enumerate(message.field):
        yield f"{name}.{field.name}", (*place, 2, number)
    for number, nested in enumerate(message.nested_type):
        yield from _in_message(nested, (*place, 3, number), f"{name}.{nested.name}")
    for number, enum in enumerate(message.enum_type):
        yield from _in_enum(enum, (*place, 4, number), f"{name}.{enum.name}")


def _in_enum(enum: descriptor_pb2.EnumDescriptorProto, place: Place, name: str) -> Iterator[tuple[str, Place]]:
    yield name, place
    for number, value in enumerate(enum.value):
        yield f"{name}.{value.name}", (*place, 2, number)


def test_every_element_has_a_comment(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    """Each has a comment above it: without one, two people would read a field in two ways."""
    bare = []
    for file in files:
        comments = {tuple(location.path): location.leading_comments for location in file.source_code_info.location}
        bare += [f"{file.name}: {name}" for name, place in elements(file) if not comments.get(place, "").strip()]
    assert not bare


def _enums(file: descriptor_pb2.FileDescriptorProto) -> Iterator[descriptor_pb2.EnumDescriptorProto]:
    yield from file.enum_type
    messages = list(file.message_type)
    while messages:
        message = messages.pop()
        yield from message.enum_type
        messages += message.nested_type


def test_the_zero_of_every_enum_is_unspecified(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    """Zero, which means absent, never has another meaning."""
    for file in files:
        for enum in _enums(file):
            assert enum.value[0].number == 0
            assert enum.value[0].name.endswith("_UNSPECIFIED"), f"{file.name}: {enum.name}"


def test_every_message_of_a_method_is_its_own(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    """No two methods share a request or a response: a later change for one method must not affect another."""
    for file in files:
        used = [
            name
            for service in file.service
            for method in service.method
            for name in (method.input_type, method.output_type)
        ]
        assert len(used) == len(set(used))


PROTO = Path("protos/tidegate/v1/tidegate.proto")
RELEASED = Path("protos/tidegate/v1/released.binpb")


class Copy:
    """A copy of the protos to modify, in the form that buf reads."""

    def __init__(self, folder: Path) -> None:
        self.buf = find_tool("buf", "buf-bin is in the extra dev")
        self.folder = folder
        shutil.copy(ROOT / "buf.yaml", folder)
        for path in (PROTO, RELEASED):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / path)

    def replace(self, old: str, new: str) -> None:
        """Replaces `old`, which occurs once in the proto."""
        text = (self.folder / PROTO).read_text()
        assert text.count(old) == 1, f"{PROTO} has {text.count(old)} of {old!r}: this test is to be written anew"
        (self.folder / PROTO).write_text(text.replace(old, new))

    def complaints(self, *command: str) -> str:
        """The output of buf; empty when it finds nothing."""
        options = {"capture_output": True, "text": True, "cwd": self.folder, "timeout": 120}
        finished = subprocess.run([self.buf, *command], check=False, **options)
        assert finished.returncode in (0, 100), finished.stderr  # other exit codes mean that buf itself has failed
        assert (finished.returncode == 0) == (not finished.stdout)
        return finished.stdout

    def lint(self) -> str:
        """Violations of the style rules."""
        return self.complaints("lint")

    def breaking(self) -> str:
        """Changes that break the last release."""
        return self.complaints("breaking", "--against", str(RELEASED))


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """A copy of the protos."""
    return Copy(tmp_path)


def test_the_protos_are_in_good_style(copy: Copy) -> None:
    """Buf's standard rules and those about comments."""
    assert not copy.lint()


def test_the_last_release_is_kept(copy: Copy) -> None:
    """Clients of the last release still work, and their code still compiles."""
    assert not copy.breaking()


def test_the_last_release_is_of_this_protocol() -> None:
    """An empty description would be easy to keep."""
    files = descriptor_pb2.FileDescriptorSet.FromString((ROOT / RELEASED).read_bytes()).file
    released = next(file for file in files if file.package == "tidegate.v1")
    assert {"TidegateService.Predict", "PredictRequest.open", "Error.REASON_STEP_GAP"} <= {
        name.replace("Error.Reason.", "Error.") for name, _ in elements(released)
    }


# Parts of the proto to modify; each occurs once.
FIELD = "\n  uint64 resume_from = 7;"
VALUE = "\n    REASON_STEP_GAP = 4;"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (FIELD, "\n  uint64 resumeFrom = 7;", "should be lower_snake_case"),
        (VALUE, "\n    STEP_GAP = 4;", 'should be prefixed with "REASON_"'),
        (FIELD, f"{FIELD}\n  uint64 other = 77;", "should have a non-empty comment"),
    ],
)
def test_bad_style_is_found(copy: Copy, old: str, new: str, complaint: str) -> None:
    """Names against the style, and a field without a comment."""
    copy.replace(old, new)
    assert complaint in copy.lint()


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (FIELD, "\n  uint64 resume_from = 17;", 'field "7" with name "resume_from" on message "Open" was deleted'),
        (FIELD, "\n  int64 resume_from = 7;", "changed type"),
        (FIELD, "\n  uint64 resume_at = 7;", "changed name"),
        (VALUE, "", 'enum value "4" on enum "Reason" was deleted'),
    ],
    ids=["renumbered", "another type", "renamed", "deleted"],
)
def test_a_change_that_breaks_clients_is_found(copy: Copy, old: str, new: str, complaint: str) -> None:
    """Changes on the wire, and changes that break the clients' code."""
    copy.replace(old, new)
    assert complaint in copy.breaking()


def test_an_addition_is_compatible(copy: Copy) -> None:
    """Clients of the last release ignore additions."""
    copy.replace(FIELD, f"{FIELD}\n  uint64 other = 77;")
    assert not copy.breaking()
