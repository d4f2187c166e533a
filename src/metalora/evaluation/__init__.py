"""How adapted features are judged: k-NN protocols (`knn`) and the statistics of repeated runs (`statistics`)."""
