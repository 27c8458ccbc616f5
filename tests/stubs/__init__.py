"""The client code of other languages: generated from the proto, compiled and run, with the tools that each language has."""
