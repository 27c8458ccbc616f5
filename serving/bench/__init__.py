"""The load generator of `tidegate bench` and of the benchmarks in this repository.

The parent process starts several client processes, sends each its task, and builds one report.

| module | content |
|---|---|
| `plan` | the settings of a run |
| `schedule` | the time at which each timestep is due |
| `run` | one run, as the parent process sees it |
| `processes`, `messages` | the client processes, and what they exchange with the parent |
| `load` | the load generator inside one client process |
| `light_client`, `send_queue`, `encoding`, `http2` | calls through a light gRPC client |
| `python_client` | calls through `tidegate.client`, the client that users have |
| `counts`, `histogram` | what a client process measured |
| `scrape` | what the server reports on /metrics |
| `result`, `display`, `plot` | the report as JSON, as a table and as a picture |
"""
