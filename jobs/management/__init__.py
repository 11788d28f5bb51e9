"""What can be done in a shell? Commands: parse, call one function, print."""
