"""How do programs use Punctual? By a JSON API below /api/, with a token or a session.

Its one rule: an operation parses, calls one function and renders. The functions check permissions and note the audit
rows, as for every other door. `urls` assembles the API, `routes` and `lists` hold what its operations share, and
`problems` writes every refusal.
"""
