"""Serves recurrent models over gRPC, keeping every stream's state. `tidegate.client` talks to it."""
