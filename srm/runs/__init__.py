"""What every run has: its settings, and folders that appear whole."""
