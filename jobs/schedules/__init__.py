"""What does a schedule mean, and what may be done to it?

`calendar` computes when it is due next, `acts` does what people ask for, `entries` brings those of the settings.
"""
