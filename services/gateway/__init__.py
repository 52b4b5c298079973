"""The gateway: who asks, how much, in which order, on which executor.

Holds no durable state; what it knows of tenants and models it mirrors from the knowledge store.
"""
