"""Coders go out to other tools' formats and come in from them, and are published with a model card."""
