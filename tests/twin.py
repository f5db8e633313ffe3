"""The model that the tests compare ours with; it lives in the package, whose benchmarks train it beside ours."""

from gpt2c.bench.twin import Twin

__all__ = ["Twin"]
