"""The machine: devices, threads, memory, and how processes of the engine are set up."""
