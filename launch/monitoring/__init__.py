"""Prometheus and Grafana for a run: what to import there, made from the list of metrics."""
