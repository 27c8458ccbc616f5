"""A load on a server, and what was seen of it: `tidegate bench`.

Several client processes each run streams; the parent asks, gathers and reports. What is to be done stands in `plan`, when
in `schedule`; `lane` keeps the books of one call, `load` is one process, `crew` all of them; `tally` is what was seen,
`scrape` what the server says of itself, `result` the report.
"""
