"""Rules: facts about a recipient in, a verdict or no opinion (None) out. One rule a file."""
