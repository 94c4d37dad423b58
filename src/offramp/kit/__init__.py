"""What every room stands on: requests, defaults, records and how they are sealed, output folders."""
