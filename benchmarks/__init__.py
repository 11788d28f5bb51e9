"""How fast is Punctual, compared with the stock parts? `make bench` runs all benchmarks and prints ratios.

Its one rule: one run measures both parts in turn, on the same servers and rows, from outside and in the same way.
Figures are medians with the lowest and the highest value. Machines are noisy, so no test asserts a time.
"""
