"""Many processes, killed, stopped and continued; memory that runs full; bytes that go bad."""
