"""The commands of `flextrace`, one module each; exits.py has the exit codes that all of them follow."""
