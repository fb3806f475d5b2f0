"""Framework adapters: each finds a model's layers, inserts taps and intercepts calls.

What they have in common is in ``_taps``; the contract is ``_taps.collect.Adapter``.
"""
