"""How the embedded models were trained: `python -m embedded unet OUT` and `python -m embedded flow OUT`.

Nothing here is needed to use amsd, so nothing here is in the wheel.
"""
