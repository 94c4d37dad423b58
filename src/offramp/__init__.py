"""offramp: would early-exit decoding pay?"""
