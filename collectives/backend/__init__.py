"""What torch sees: the registered backend, its process group, and the executors (engine or Gloo) of its calls."""
