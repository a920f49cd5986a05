"""What a model's directory says of itself, and what an engine makes of that."""
