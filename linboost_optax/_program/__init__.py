"""What a traced function does with its parameters: read, and run with taps."""
