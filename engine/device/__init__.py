"""What the engine stands on: devices, threads, memory and processes of the machine."""
