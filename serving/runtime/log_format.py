"""The two forms of a log line: text for people, JSON for programs."""

import json
import logging
import time
from collections.abc import Mapping
from typing import Any, Literal

LogFormat = Literal["text", "json"]

# What a record may carry beside its message: see `runtime.stream_log`.
FIELDS = "fields"


def choose_format(wanted: str, is_terminal: bool) -> LogFormat:
    """The format for `--log-format`; "auto" is text for a terminal, else JSON. Raises ValueError."""
    forms: Mapping[str, LogFormat] = {"text": "text", "json": "json", "auto": "text" if is_terminal else "json"}
    if wanted not in forms:
        raise ValueError(f"got '{wanted}', expected auto, text or json")
    return forms[wanted]


def make_formatter(form: LogFormat, worker: str = "") -> logging.Formatter:
    """The formatter; `worker` is the number of the worker, empty when there is one process."""
    if form == "json":
        return JsonFormatter(worker)
    who = f"worker {worker}: " if worker else ""
    return logging.Formatter(f"%(asctime)s %(levelname)s {who}%(name)s: %(message)s")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` in UTC, `level`, `logger`, `message`, `worker`, `error` with a traceback, and fields."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """The line without its end."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._worker:
            line["worker"] = int(self._worker)
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
