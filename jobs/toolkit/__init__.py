"""What may a job use? Public names: everything a job imports from Punctual."""
