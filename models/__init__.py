"""Language models as the stages see them: loading, the sites of each family, reading and replacing activations."""
