"""Files that a user writes: the job file and the lab file, their schema, and the checks before a start."""
