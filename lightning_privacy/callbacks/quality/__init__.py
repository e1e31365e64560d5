"""Quality of what a model makes: distances between picture sets, similarity of pairs, sample grids."""
