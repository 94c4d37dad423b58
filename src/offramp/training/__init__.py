"""How exits learn, of a frozen model or with it: recipes, cached states, one trainer, what it cost."""
