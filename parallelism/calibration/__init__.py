"""Measuring this machine: operators, steps' overheads. What `calibrate` asks in processes of their own."""
