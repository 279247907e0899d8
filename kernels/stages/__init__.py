"""The stages of attention: what a backend provides of them, and the pipeline that runs one after the other."""
