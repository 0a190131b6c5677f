"""A site that announces orders, run by every program that runs Django sites.

It is copied for each test, which may change its files.
"""
