"""A group of commands: its help lists them under headings, and without arguments it prints its help."""

from typer import Context, echo
from typer.core import TyperCommand, TyperGroup

from tidegate.cli.errors import EXIT_USAGE

# The headings of the help, in their order. A command names its heading as `rich_help_panel`.
SERVING = "Serving"
STREAMS_AND_MODELS = "Streams and models of a server"
TRAINING = "Training"
TOOLS = "Tools"
HEADINGS = (SERVING, STREAMS_AND_MODELS, TRAINING, TOOLS, "Commands")
# Longer than any first sentence: the text is wrapped, not cut.
SHORT_HELP_MAX = 1000


class CommandGroup(TyperGroup):
    """Lists its commands under `HEADINGS`, those without a heading under the last."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:  # type: ignore[override]  # typer's base is private
        """Prints the help when there are no arguments. The exit code is that of bad usage."""
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            echo(ctx.get_help(), err=True)
            ctx.exit(EXIT_USAGE)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Context, formatter: object) -> None:  # type: ignore[override]
        """Writes the commands."""
        listed: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            assert isinstance(command, TyperCommand | TyperGroup)
            heading = command.rich_help_panel if isinstance(command.rich_help_panel, str) else HEADINGS[-1]
            listed[heading].append((name, command.get_short_help_str(SHORT_HELP_MAX)))
        for heading, rows in listed.items():
            if rows:
                with formatter.section(heading):  # type: ignore[attr-defined]
                    formatter.write_dl(rows)  # type: ignore[attr-defined]
