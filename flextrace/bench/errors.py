"""What stops a benchmark."""


class BenchError(RuntimeError):
    """The benchmark cannot run as asked."""
