"""Small models trained one factor apart, and what each factor does to early exit.

An experiment on top of offramp, of whose code it uses the public names only. `docs/preregistered.md` says
what is tested and how; `README.md` how to run it.
"""
