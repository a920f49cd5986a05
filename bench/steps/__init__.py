"""`python -m bench.steps`: steps of whole models beside their floor."""
