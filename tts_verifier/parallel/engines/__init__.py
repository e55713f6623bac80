"""The engines: each starts workers, hands work to them, and replaces those that die."""
