"""top_activations"""
