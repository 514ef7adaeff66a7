"""Commands that answer a whole file, and the files themselves."""
