"""What is asked of every arm: prompts, lengths and arrival times."""
