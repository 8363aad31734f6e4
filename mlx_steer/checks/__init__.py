"""Is it sound? `doctor` examines this machine and a model, `lint` a behavior."""
