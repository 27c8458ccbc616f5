"""Settings that give a small graph: torch exports it in a quarter of the time.

For tests of something else than the graph. What these settings leave out, the regression, the level and quantiles that
follow, is exported in `test_matrix`, `network/test_linear` and `cli/test_app`.
"""

LIGHT_OPTIONS = ["--links", "last", "--level", "off", "--no-follow"]
