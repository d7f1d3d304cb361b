"""Files that a user writes: schemas of the job file and the lab file, reading them, and the checks before a start."""
