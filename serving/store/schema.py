"""What the SQLite file holds: its tables, how those of older versions are made into them, and what is read from them.

Whatever is looked at without the record stands before it in the table: what stands behind a large one is read through all of it.
"""

from serving.store.store import Wanted

SCHEMA = 3
# "TdGt": tells `file` and us that a database is Tidegate's.
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
    """The statements that make the streams of an older schema into those of this one, whose columns they give in order.

    A column that is merely added would stand behind the record.
    """
    return (
        "ALTER TABLE streams RENAME TO streams_before",
        _STREAMS,
        f"INSERT INTO streams SELECT {before} FROM streams_before",  # noqa: S608 (columns, named in this file)
        "DROP TABLE streams_before",  # and its indexes, whose names are used again
        *_INDEXES,
    )


# Nobody has its streams in memory.
_FROM_1 = _from(
    """tenant, stream_id, epoch, 0, 0, 0, 0, step, model_name, model_version, fingerprint,
    created_unix_nano, updated_unix_nano, state_bytes, expired, '', record"""
)
# Servers of that schema may be running, and go on: what they write names its columns. Of owners they know nothing: a claim of
# theirs leaves the one that was there.
_FROM_2 = _from(
    """tenant, stream_id, epoch, writer, mark, asked, answered, step, model_name, model_version, fingerprint,
    created_unix_nano, updated_unix_nano, state_bytes, tombstone, '', record"""
)
# The statements that make the tables, from those of each schema.
BUILD = {0: (_STREAMS, *_INDEXES, *_BESIDE), 1: (*_FROM_1, *_BESIDE), 2: _FROM_2, SCHEMA: ()}

# When the writer of a stream last said that it is alive.
BEAT = "ifnull((SELECT beat_unix_nano FROM writers WHERE writers.writer = streams.writer), 0)"
HEAD = f"""stream_id, epoch, step, model_name, model_version, fingerprint, created_unix_nano, updated_unix_nano,
    state_bytes, tombstone, streams.writer, mark, asked, answered, owner, CASE mark WHEN 0 THEN 0 ELSE {BEAT} END"""
# What a scan looks for; each has an index that holds few more than that.
WANTED = {
    Wanted.ALL: "tombstone != 2",
    Wanted.HELD: f"mark != 0 AND tombstone = 0 AND (streams.writer = :self OR {BEAT} BETWEEN :first AND :last)",
    Wanted.REST: f"tombstone = 0 AND (mark = 0 OR NOT (streams.writer = :self OR {BEAT} BETWEEN :first AND :last))",
    Wanted.EXPIRED: "tombstone = 1",
}
