"""Seeded workload generators: arrivals, lengths, sessions, agents; profiles; fits."""

from .generate import synth, synth_blocks
from .profile import Profile, load_profile, profile_names

__all__ = ["Profile", "load_profile", "profile_names", "synth", "synth_blocks"]
