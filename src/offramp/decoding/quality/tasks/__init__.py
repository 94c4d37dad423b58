"""Tasks with real scorers: questions, and how an answer is scored."""
