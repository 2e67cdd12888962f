"""Top floor: the command line and the one-machine stack (stores and every service)."""
