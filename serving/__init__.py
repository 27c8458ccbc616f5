"""Serves recurrent models over gRPC, keeping every stream's state. `serving.client` talks to it."""
