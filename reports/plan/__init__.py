"""What to launch: every legal layout, those that fit, the fastest of them, and why."""
