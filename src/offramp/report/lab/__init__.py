"""The page and the tables of the lab's study."""
