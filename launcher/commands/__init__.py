"""The command line's commands beside submit, one file for each group."""
