"""Models: found by hub id, folder or built-in name; loaded with tokenizer and chat template."""
