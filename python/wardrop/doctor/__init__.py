"""`wardrop doctor`: proves the wiring of a running router end to end, and says what to do.

    router ─▶ facts (status, wiring, health) ─▶ checks ─────────▶ findings ─▶ text or JSON
       ▲                                                             ▲
       └── canary prompts of random token ids ─▶ answers, receipts ──┘

A check of facts is a pure function. A canary sends a few short prompts of new tokens, which no
cache holds. Nothing of a prompt of a client is read.
"""
