"""perseusd-exporter: the daemon's status as Prometheus metrics, and its health, over HTTP.

A process of its own, because the daemon has no network: it asks the status socket, as any user may.
"""
