"""One job under the daemon's care, in layers: followed, studied, observed, reacting, guarded."""
