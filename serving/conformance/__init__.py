"""A scripted server that tests clients in any language, and reports which rules of `docs/protocol.md` they violate.

| module | content |
|---|---|
| `rules` | the rules |
| `scenarios`, `predict_one` | the scenarios: scripts for clients that stream, and for clients of `PredictOne` |
| `scenario_run` | one run of a scenario: it follows what the client does, independently of the gRPC method |
| `predict`, `blocks` | the calls `Predict` and `PredictBlocks` |
| `toy_model` | the model that the server pretends to serve |
| `server`, `runner` | the gRPC server, and running a client program through the scenarios |
"""
