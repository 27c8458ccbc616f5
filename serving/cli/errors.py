"""How a command ends without doing what it was asked: one line and an exit code."""

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_START_FAILED = 3
# What shells report for a program that was interrupted by Ctrl-C.
EXIT_INTERRUPTED = 130


class CommandError(Exception):
    """Ends the command; the message is the line.

    Exit codes: 1 the answer is no (not healthy, connection lost), 2 bad usage or input, 3 the server could not start.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)
