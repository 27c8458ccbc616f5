"""A server that plays scripts to a client in any language and says which rules of `docs/protocol.md` it broke.

`rules` has the rules, `scenarios` the scripts for clients that stream, `single` those for single calls. A script acts through a
`stage`, which follows what the client does, and which `predict` and `blocks` lend a wire; `toy` is the model that is played; `run` has a
client program play them all.
"""
