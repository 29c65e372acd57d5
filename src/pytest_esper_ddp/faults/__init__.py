"""The catalogue of faults: frozen data with coordinates, and how each is applied from outside."""
