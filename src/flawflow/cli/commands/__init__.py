"""What the commands do: one module a command, whose `run` gets the parsed arguments and returns the exit code."""
