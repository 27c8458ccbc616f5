"""The errors of the training package. They know no exit codes: `cli` maps them.

    TrainingError
    ├── SettingsError            an option has a value that cannot work
    ├── DatasetError             a named data set
    │   ├── UnknownDataset         no set has that name
    │   ├── DatasetUnavailable     it cannot be fetched
    │   └── ChecksumMismatch       the data differs from its pinned checksum
    ├── TableError               a table of sensor values: a file, or data in memory
    │   ├── UnreadableTable        not there, not a table, or an unknown kind of file
    │   ├── MissingColumn          a requested column does not exist
    │   ├── TimeColumnError        no time column, several, or one that holds no times
    │   ├── TimeOrderError         times that are missing, repeated or decreasing
    │   ├── ColumnError            a column whose cells cannot be used; it names the column
    │   │   ├── TextColumn           it holds something other than numbers
    │   │   ├── InfiniteValue        a value beyond the range of float32
    │   │   └── UnheldNumber         a number whose changes float32 cannot hold
    │   ├── GroupColumnError       a group column, or one to split by, that does not assign each row
    │   ├── LabelColumnError       a label column without two classes
    │   ├── SplitError             groups that cannot be divided as requested
    │   ├── EmptyColumn            a column without a value to train on
    │   ├── TableErrors            several of these at once
    │   ├── ConstantTarget         a target that never changes
    │   ├── PeriodMismatch         rows that are not as far apart as those of the training
    │   └── SeriesTooShort         too few rows for the split and the horizons
    ├── RunError                 a run folder that is missing or incomplete
    ├── Diverged                 training ended in NaN
    └── ModelError               an exported model
        ├── ModelUnreadable        missing, or not written by us
        ├── ModuleError            a module that cannot be exported as it is
        ├── ParityError            the graph and the network disagree
        └── VersionExists          the version is already on disk

Each message names the subject, the value, the expected value, and what to do.
"""


class TrainingError(Exception):
    """A problem that the user can solve; the message is one complete line."""


class SettingsError(TrainingError):
    """An option has a value that cannot work."""


class DatasetError(TrainingError):
    """A named data set cannot be used."""


class UnknownDataset(DatasetError):
    """No data set has that name."""


class DatasetUnavailable(DatasetError):
    """The data set cannot be fetched."""


class ChecksumMismatch(DatasetError):
    """The data differs from its pinned checksum."""


class TableError(TrainingError):
    """A table cannot be used as a sensor series."""


class UnreadableTable(TableError):
    """The file is not there, is no table, or is of an unknown kind."""


class MissingColumn(TableError):
    """A requested column is not in the table."""


class TimeColumnError(TableError):
    """There is no time column, there are several, or it holds no times."""


class TimeOrderError(TableError):
    """A time is missing, repeated, or earlier than the one before."""


class ColumnError(TableError):
    """The cells of a column cannot be used.

    Attributes:
        column: its name.
        problem: what is wrong with it and what to do; the message without the names of the table and the column.
    """

    def __init__(self, table: str, column: str, problem: str) -> None:
        super().__init__(f"{table}: column {column!r} {problem}")
        self.column, self.problem = column, problem


class TextColumn(ColumnError):
    """A column holds something other than numbers."""


class InfiniteValue(ColumnError):
    """A value is infinite or beyond the range of float32."""


class UnheldNumber(ColumnError):
    """The changes of a column are lost in float32."""


class GroupColumnError(TableError):
    """A group column, or one to split by, does not assign each row."""


class LabelColumnError(TableError):
    """A label column does not hold at least two classes."""


class SplitError(TableError):
    """The groups cannot be divided as requested."""


class EmptyColumn(TableError):
    """A column has no value to train on."""


class TableErrors(TableError):
    """Several errors of one table; the message has a line for each."""

    def __init__(self, errors: "list[TableError]") -> None:
        super().__init__("\n".join(str(error) for error in errors))
        self.errors = errors


class ConstantTarget(TableError):
    """The target never changes, so there is nothing to forecast."""


class PeriodMismatch(TableError):
    """The rows are not as far apart as those that the model was trained on."""


class SeriesTooShort(TableError):
    """There are too few rows for the split and the horizons."""


class RunError(TrainingError):
    """A run folder is missing or incomplete."""


class Diverged(TrainingError):
    """The loss is no longer a number."""


class ModelError(TrainingError):
    """An exported model cannot be written or used."""


class ModelUnreadable(ModelError):
    """The model file is missing or was not written by us."""


class ModuleError(ModelError):
    """A `torch.nn.Module` cannot be exported, or does not do what its description says."""


class ParityError(ModelError):
    """The exported graph and the network do not compute the same."""


class VersionExists(ModelError):
    """That version is already on disk; versions are never overwritten."""
