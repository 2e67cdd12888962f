"""The rush, live in a terminal: what the services' /metrics, the stores and the machine say, once a second."""
