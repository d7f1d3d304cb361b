"""What torchrun starts: short programs around a library, for those that are no programs by themselves."""
