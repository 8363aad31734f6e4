"""The experiment as a value: its program, its execution, and its counting."""
