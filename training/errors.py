"""What a person who trains can do wrong, and what can go wrong for them. Knows nothing of exit codes: `cli` maps.

    TrainingError
    ├── SettingsError            an option has a value that cannot work
    ├── DatasetError             a named data set
    │   ├── UnknownDataset         no set has that name
    │   ├── DatasetUnavailable     it could not be fetched
    │   └── ChecksumMismatch       what was fetched is not what was pinned
    ├── TableError               a table of sensor values: a file, or what a program hands over
    │   ├── UnreadableTable        not there, not a table, or an unknown kind of file
    │   ├── MissingColumn          a column that was asked for is not there
    │   ├── TimeColumnError        no time column, several, or one that holds no times
    │   ├── TimeOrderError         times that are missing, repeated or run backwards
    │   ├── TextColumn             a column that holds something other than numbers
    │   ├── GroupColumnError       a group column, or one to split by, that does not say which rows belong together
    │   ├── LabelColumnError       a label column without two classes
    │   ├── SplitError             groups that cannot be shared out as asked
    │   ├── EmptyColumn            a column without a single value to learn from
    │   ├── InfiniteValue          a value beyond what float32 can hold
    │   ├── ConstantTarget         a target that never changes
    │   └── SeriesTooShort         too few rows for the split and the horizons
    ├── RunError                 a run folder that is missing or incomplete
    ├── Diverged                 training ended in NaN
    └── ModelError               an exported model
        ├── ModelUnreadable        missing, or not one of ours
        ├── ParityError            the graph and the network disagree
        └── VersionExists          the version is already on disk

Every message names the thing, what was got, what was expected and what to do.
"""


class TrainingError(Exception):
    """Anything that the person at the keyboard can mend; the message is one line and complete."""


class SettingsError(TrainingError):
    """An option has a value that cannot work."""


class DatasetError(TrainingError):
    """A named data set cannot be used."""


class UnknownDataset(DatasetError):
    """No data set has that name."""


class DatasetUnavailable(DatasetError):
    """The data set could not be fetched."""


class ChecksumMismatch(DatasetError):
    """What was fetched is not what was pinned."""


class TableError(TrainingError):
    """A table cannot be used as a sensor series."""


class UnreadableTable(TableError):
    """The file is not there, is no table, or is of an unknown kind."""


class MissingColumn(TableError):
    """A column that was asked for is not in the table."""


class TimeColumnError(TableError):
    """There is no time column, there are several, or it holds no times."""


class TimeOrderError(TableError):
    """A time is missing, repeated, or earlier than the one before."""


class TextColumn(TableError):
    """A column holds something other than numbers."""


class GroupColumnError(TableError):
    """A group column, or one to split by, does not say which rows belong together."""


class LabelColumnError(TableError):
    """A label column does not hold at least two classes."""


class SplitError(TableError):
    """The groups cannot be shared out as asked."""


class EmptyColumn(TableError):
    """A column has no value to learn from."""


class InfiniteValue(TableError):
    """A value is infinite or beyond the range of float32."""


class ConstantTarget(TableError):
    """The target never changes, so there is nothing to forecast."""


class SeriesTooShort(TableError):
    """There are too few rows for the split and the horizons."""


class RunError(TrainingError):
    """A run folder is missing or incomplete."""


class Diverged(TrainingError):
    """The loss is no longer a number."""


class ModelError(TrainingError):
    """An exported model cannot be written or used."""


class ModelUnreadable(ModelError):
    """The model file is missing or is not one of ours."""


class ParityError(ModelError):
    """The exported graph and the network do not compute the same."""


class VersionExists(ModelError):
    """That version is already on disk; versions are never overwritten."""
