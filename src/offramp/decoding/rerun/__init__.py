"""Given texts decided anew, keys and values as a policy leaves them: decoding's decisions, in parallel."""
