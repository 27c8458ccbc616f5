"""The schema of the SQLite file: its tables, migrations from older versions, and the columns that are read.

Columns that are read without the record come before it in the table: to reach a column behind a large record, SQLite
reads all of it.
"""

from tidegate.store.store import ScanScope

SCHEMA = 3
# "TdGt": identifies a database of Tidegate, also for the command `file`.
APPLICATION_ID = 0x54644774

_STREAMS = """CREATE TABLE streams (
    tenant TEXT NOT NULL,
    stream_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    writer INTEGER NOT NULL, -- who claimed it last, and alone may store it
    mark INTEGER NOT NULL, -- whether the writer has it in memory: a Mark
    asked INTEGER NOT NULL,
    answered INTEGER NOT NULL,
    step INTEGER NOT NULL,
    model_name TEXT NOT NULL,
    model_version TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    created_unix_nano INTEGER NOT NULL,
    updated_unix_nano INTEGER NOT NULL,
    state_bytes INTEGER NOT NULL,
    tombstone INTEGER NOT NULL, -- a Tombstone
    owner TEXT NOT NULL DEFAULT '', -- the client of the last claim, '' when it named none, and of a tombstone
    record BLOB, -- NULL before the first checkpoint, and of a tombstone
    PRIMARY KEY (tenant, stream_id)
)"""
_INDEXES = (
    "CREATE INDEX streams_by_age ON streams (tombstone, updated_unix_nano)",
    "CREATE INDEX streams_expired ON streams (tenant, stream_id) WHERE tombstone = 1",
    "CREATE INDEX streams_held ON streams (tenant, stream_id) WHERE mark != 0",
)
_BESIDE = (
    "CREATE TABLE writers (writer INTEGER PRIMARY KEY, beat_unix_nano INTEGER NOT NULL)",
    """CREATE TABLE notices (
        number INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice: who has read one asks for those above it
        tenant TEXT NOT NULL, stream_id TEXT NOT NULL, posted_unix_nano INTEGER NOT NULL)""",
    "CREATE TABLE epochs (highest INTEGER NOT NULL) -- of streams that are gone without a tombstone",
    "INSERT INTO epochs VALUES (0)",
)


def _from(before: str) -> tuple[str, ...]:
    """The statements that migrate the streams of an older schema.

    `before` names its columns in the order of the new ones.

    A column that is only added would come behind the record.
    """
    return (
        "ALTER TABLE streams RENAME TO streams_before",
        _STREAMS,
        f"INSERT INTO streams SELECT {before} FROM streams_before",  # noqa: S608 (columns, named in this file)
        "DROP TABLE streams_before",  # and its indexes, whose names are used again
        *_INDEXES,
    )


# No server has its streams in memory.
_FROM_1 = _from(
    """tenant, stream_id, epoch, 0, 0, 0, 0, step, model_name, model_version, fingerprint,
    created_unix_nano, updated_unix_nano, state_bytes, expired, '', record"""
)
# Servers with that schema may still be running, and continue to work: their statements name the columns. They do not
# know owners, so their claims leave the owner as it was.
_FROM_2 = _from(
    """tenant, stream_id, epoch, writer, mark, asked, answered, step, model_name, model_version, fingerprint,
    created_unix_nano, updated_unix_nano, state_bytes, tombstone, '', record"""
)
# The statements that build the tables, for each schema that a file may have.
BUILD = {0: (_STREAMS, *_INDEXES, *_BESIDE), 1: (*_FROM_1, *_BESIDE), 2: _FROM_2, SCHEMA: ()}

# The last heartbeat of the writer of a stream.
BEAT = "ifnull((SELECT beat_unix_nano FROM writers WHERE writers.writer = streams.writer), 0)"
METADATA_COLUMNS = f"""stream_id, epoch, step, model_name, model_version, fingerprint, created_unix_nano, updated_unix_nano,
    state_bytes, tombstone, streams.writer, mark, asked, answered, owner, CASE mark WHEN 0 THEN 0 ELSE {BEAT} END"""
# The condition of each scope of a scan. Each has an index with few more rows.
SCAN_CONDITIONS = {
    ScanScope.ALL: "tombstone != 2",
    ScanScope.IN_MEMORY: f"mark != 0 AND tombstone = 0 AND (streams.writer = :self OR {BEAT} BETWEEN :first AND :last)",
    ScanScope.EXPIRED: "tombstone = 1",
}
