"""Pipeline schedules without torch: which stages there are, who holds them, in which order they run."""
