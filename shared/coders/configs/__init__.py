"""The settings of each architecture. They import no torch: every command reads them."""
