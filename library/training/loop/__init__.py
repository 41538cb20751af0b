"""The loop: epochs of optimizer steps, and what is validated, drawn, saved and logged in between."""
