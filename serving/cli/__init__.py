"""The command line `tidegate`."""

import sys
from collections.abc import Sequence

from tidegate.cli.errors import EXIT_INTERRUPTED, EXIT_USAGE
from tidegate.runtime.signals import take_signals


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command line and exits."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Before the imports, which take some hundred milliseconds.
    take_signals(serves=arguments[:1] == ["serve"])
    try:
        from tidegate.cli import app  # noqa: PLC0415 - see above
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tidegate"):
            raise
        sys.stderr.write(f"error: the command line needs {error.name}: pip install 'tidegate[server]'\n")
        sys.exit(EXIT_USAGE)
    app.main(arguments)


__all__ = ["main"]
