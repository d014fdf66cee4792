"""Losses: pure functions that return one f32 number an example, f32[B]."""
