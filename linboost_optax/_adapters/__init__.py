"""Adapters: what a framework's models are, as functions of a tree of parameters.

What they have in common is in ``_program``, which reads such functions.
"""
