"""The apps of these scenarios; the test says by the environment where the broker is."""
