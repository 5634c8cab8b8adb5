"""absorption"""
