"""What studies and runs say side by side: leaderboards, strategies, and scores beside what is saved."""
