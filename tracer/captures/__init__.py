"""What a mod reads from outside, how it is found again, and when a trace of it still holds."""
