"""Adapters to the host toolkits, one module or package per host.

Installed as ``art_logits.plugins``. Each adapter imports the core and exactly one host; this package
imports none of them, so that ``import art_logits.plugins`` works with no host installed.
"""
