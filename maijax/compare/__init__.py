"""Small beside large: experiments by arithmetic, runs by what they measured, ladders by how a gain moves with scale."""
