"""The KServe v2 and Triton protocol: a second way to the same streams."""
