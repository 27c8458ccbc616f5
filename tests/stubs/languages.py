"""How the client code of each language is generated, compiled and tried.

The commands are those that a user of the language runs; `protos` is the folder that imports start at. The libraries are
those of Debian 12 and of package.json. A program in `programs/` builds a client and a request with what was generated, and
prints the bytes of the request, which are the same in all languages.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NPM = "`npm install --prefix tests/stubs`"
# Java's libraries, and the packages that they are in.
JARS = {
    "/usr/share/java/protobuf.jar": "libprotobuf-java",
    "/usr/share/java/guava.jar": "libguava-java",
    **{
        f"/usr/share/java/grpc-{part}.jar": "libgrpc-java"
        for part in ("api", "context", "core", "netty", "protobuf", "stub")
    },
    **{
        f"/usr/share/java/netty-{part}.jar": "libnetty-java"
        for part in ("buffer", "codec", "codec-http", "codec-http2", "common", "handler", "resolver", "transport")
    },
    "/usr/share/java/perfmark-api.jar": "libperfmark-java",
    "/usr/share/java/geronimo-annotation-1.3-spec.jar": "libgeronimo-annotation-1.3-spec-java",
}
CLASSPATH = ":".join(JARS)


@dataclass(frozen=True, slots=True)
class Language:
    """A language, and what its users run.

    Commands are for bash, in the root of the repository; $OUT is an empty folder, $PROGRAMS that of the programs, and $PROTOC
    is a Python that has protoc.

    Attributes:
        name: of the language, and of its library where there are several.
        needs: programs and files that must be there, and what each is installed with.
        version: prints which generator it is.
        generate: writes the client code into $OUT; empty where the proto is read at run time.
        compile: makes a program of it; empty where nothing is compiled.
        run: prints the bytes of a request; empty where no library can be had.
        cheap: whether it is quickly installed, and so always tried when a change is judged.
        note: what else is to be said.

    """

    name: str
    needs: Mapping[str, str]
    version: str
    generate: str
    compile: str = ""
    run: str = ""
    cheap: bool = False
    note: str = ""

    @property
    def missing(self) -> str:
        """What is not here, in words; empty when all is."""
        absent = [
            f"{need} ({source})"
            for need, source in self.needs.items()
            if not ((ROOT / need).exists() if "/" in need else shutil.which(need))
        ]
        return ", ".join(absent)


LANGUAGES = (
    Language(
        name="Python",
        needs={},
        version="""$PROTOC -c 'from importlib.metadata import version; print("grpcio-tools", version("grpcio-tools"))'""",
        generate="$PROTOC -m grpc_tools.protoc -I protos --python_out=$OUT --grpc_python_out=$OUT tidegate/v1/tidegate.proto",
        run="PYTHONPATH=$OUT $PROTOC $PROGRAMS/open.py",
        cheap=True,
    ),
    Language(
        name="JavaScript, connect-node",
        needs={"node": "nodejs 20", "tests/stubs/node_modules/.bin/protoc-gen-es": NPM},
        version="tests/stubs/node_modules/.bin/protoc-gen-es --version",
        generate="""
            $PROTOC -m grpc_tools.protoc -I protos --plugin=tests/stubs/node_modules/.bin/protoc-gen-es \\
                --es_out=$OUT --es_opt=target=js+dts tidegate/v1/tidegate.proto
        """,
        # Node looks for packages above the program.
        run="""
            cp $PROGRAMS/open_connect.mjs $OUT && echo '{"type": "module"}' > $OUT/package.json
            ln -s $PWD/tests/stubs/node_modules $OUT/node_modules && node $OUT/open_connect.mjs
        """,
        cheap=True,
    ),
    Language(
        name="JavaScript, grpc-js",
        needs={"node": "nodejs", "tests/stubs/node_modules/@grpc/proto-loader": NPM},
        version="""node -p '"proto-loader " + require("./tests/stubs/node_modules/@grpc/proto-loader/package.json").version'""",
        generate="",
        run="node $PROGRAMS/open_grpc_js.mjs",
        cheap=True,
        note="the program reads the proto",
    ),
    Language(
        name="C++",
        needs={
            "protoc": "protobuf-compiler",
            "grpc_cpp_plugin": "protobuf-compiler-grpc",
            "g++": "g++",
            "pkg-config": "pkg-config",
            "/usr/include/grpcpp/grpcpp.h": "libgrpc++-dev",
            "/usr/include/google/protobuf/message.h": "libprotobuf-dev",
        },
        version="protoc --version && echo grpc++ $(pkg-config --modversion grpc++)",
        generate="""
            protoc -I protos --cpp_out=$OUT --plugin=protoc-gen-grpc=$(which grpc_cpp_plugin) --grpc_out=$OUT \\
                tidegate/v1/tidegate.proto
        """,
        # In one piece: most of the time goes into reading the headers of gRPC.
        compile="""
            cat $PROGRAMS/open.cc $OUT/tidegate/v1/*.cc > $OUT/open.cc
            g++ -std=c++17 -I $OUT $OUT/open.cc $(pkg-config --cflags --libs grpc++ protobuf) -o $OUT/open
        """,
        run="$OUT/open",
        cheap=True,
    ),
    Language(
        name="Go",
        needs={
            "protoc": "protobuf-compiler",
            "go": "golang-go",
            "protoc-gen-go": "protoc-gen-go",
            "protoc-gen-go-grpc": "protoc-gen-go-grpc",
            "/usr/share/gocode/src/google.golang.org/grpc": "golang-google-grpc-dev",
        },
        version="protoc-gen-go --version && protoc-gen-go-grpc --version",
        generate="mkdir $OUT/src && protoc -I protos --go_out=$OUT/src --go-grpc_out=$OUT/src tidegate/v1/tidegate.proto",
        # Debian's libraries lie in a GOPATH; with modules, `go_package` is mapped by the option M.
        compile="GO111MODULE=off GOPATH=$OUT:/usr/share/gocode go build -o $OUT/open $PROGRAMS/open.go",
        run="$OUT/open",
    ),
    Language(
        name="Java",
        needs={
            "protoc": "protobuf-compiler",
            "grpc_java_plugin": "protobuf-compiler-grpc-java-plugin",
            "javac": "default-jdk",
            **JARS,
        },
        version="protoc --version && basename $(realpath /usr/share/java/grpc-stub.jar) .jar",
        generate="""
            protoc -I protos --java_out=$OUT --plugin=protoc-gen-grpc-java=$(which grpc_java_plugin) --grpc-java_out=$OUT \\
                tidegate/v1/tidegate.proto
        """,
        compile=f"find $OUT $PROGRAMS -name '*.java' | xargs javac -nowarn -cp {CLASSPATH} -d $OUT/classes",
        run=f"java -cp $OUT/classes:{CLASSPATH} Open",
    ),
    Language(
        name="C#",
        needs={"protoc": "protobuf-compiler"},
        version="protoc --version",
        generate="protoc -I protos --csharp_out=$OUT tidegate/v1/tidegate.proto && test -s $OUT/Tidegate.cs",
        note="not compiled: only NuGet has the libraries",
    ),
)
