"""The stopwatch: contenders decode in turns, with a verdict on the timing; profiles of this machine."""
