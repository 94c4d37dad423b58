"""A run is a study of one model: what it is asked for, its folder, its tasks in turn, a page."""
