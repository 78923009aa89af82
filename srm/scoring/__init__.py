"""Scores of responses: from text, from a policy's token ids, while text arrives, from files, by several processes."""
