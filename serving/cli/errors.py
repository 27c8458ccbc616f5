"""The error that ends a command with one line and an exit code."""

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_START_FAILED = 3
# The exit code that shells report after Ctrl-C.
EXIT_INTERRUPTED = 130


class CommandError(Exception):
    """Ends the command. The message is printed as one line.

    Exit codes: 1 failure (not healthy, connection lost), 2 bad usage or input, 3 the server could not start.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)
