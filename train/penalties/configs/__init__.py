"""The settings of each penalty. They import no torch: every command reads them."""
