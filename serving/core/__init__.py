"""The decisions: plain synchronous numpy, without asyncio, grpc, prometheus, a clock or a disk."""
