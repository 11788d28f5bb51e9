"""How fast is Punctual, and how fast is the stock part beside it? `make bench` runs them all and prints ratios.

Its one rule: both parts work in the same run, on the same servers and rows, in turn, measured from outside by the same
ruler. Figures are medians with the lowest and the highest: machines are noisy, so no test asserts a time.
"""
