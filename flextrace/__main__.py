"""`python -m flextrace` is the `flextrace` command."""

from flextrace.cli import app

if __name__ == "__main__":
    app(prog_name="flextrace")
