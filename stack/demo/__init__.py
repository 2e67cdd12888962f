"""A Thursday noon and the week after it, played against real services; `./hanquan demo`."""
