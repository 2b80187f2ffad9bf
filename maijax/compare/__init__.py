"""Small beside large: by arithmetic, by what runs measured, by how a gain moves with scale, by laws fitted to runs."""
