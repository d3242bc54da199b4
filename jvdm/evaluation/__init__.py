"""Estimators of the likelihood over sets of examples, samples, and the records of both.

A pass visits every example once, can be resumed, and does not depend on batch size or devices.
"""
