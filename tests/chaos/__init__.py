"""Chaos: real runs, broken from outside at seeded moments, against their undisturbed equals."""
