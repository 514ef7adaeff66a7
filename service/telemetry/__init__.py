"""What the service says about itself while it runs: logs, metrics, traces."""
