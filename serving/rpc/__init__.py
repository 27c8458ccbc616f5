"""The gRPC layer, and the only part of the server that knows protobuf."""
