"""What studies and runs say side by side: leaderboards, pairs, trends and the validity of scores."""
