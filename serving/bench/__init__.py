"""A load on a server, and what was seen of it: `tidegate bench`, and the benchmarks of this repository.

Several client processes each run streams; the parent asks, gathers and reports. What is to be done stands in `plan`, when in
`schedule`; `load` is one process and `crew` all of them. A lane is a call: on the light client it is `light`, which sends
`frames`, says what `speech` says and has its books in `lane`; on the client that users have it is `library`. `tally` is what
was seen, `scrape` what the server says of itself, `result` the report.
"""
