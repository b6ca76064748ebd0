"""Policy, sweeps on Ray Tune, tracking, handoff and the two commands."""
