"""What a caller passed and is not taken -> what to write instead."""
