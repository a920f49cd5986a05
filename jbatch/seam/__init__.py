"""What crosses between host and device: numpy only."""
